"""Four CPU devices, before anything else asks for a backend, and one place for what is shared.

What XLA compiles is kept for the session, for the programs that tests start too: many of them run
the same rounds.
"""

import atexit
import os
import shutil
import tempfile

import pytest

CACHE = tempfile.mkdtemp(prefix="jaxfed-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

import jax  # noqa: E402 (it reads the above)

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items):
    """What one worker runs together: a file, for its shared programs; of conformance, a name."""
    for item in items:
        named = getattr(item, "callspec", None)
        split = item.path.name == "test_conformance.py" and named is not None
        algorithm = named.params.get("name") if split else None
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {algorithm or ''}".strip()))
