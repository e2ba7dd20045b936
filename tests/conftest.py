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
