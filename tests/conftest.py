"""Four CPU devices, before anything else asks for a backend, and one place for what is shared.

On a computer with a GPU the tests run on its CPU, unless JAX_PLATFORMS says otherwise.

The tiers: `-m quick`, the default (all but `full`), and `-m ""` for every test.

What XLA compiles is kept from one run of the tests to the next, also for the programs that they
start: many of them run the same rounds. XLA compiles in a hurry, which halves the time of most
tests; those of bits, memory and compiled programs ask for the fixture `optimised`. XLA's older
emitters of fused loops compile in 0.6 of the CPU seconds; newer versions have no others. Nor is a
program split into parts for several threads. Programs carry no lines of source, which lowering
would look up, and garbage is collected seldom: a worker holds many objects that live to its end.
"""

import gc
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = (  # the files whose tests take longest, longest first; see --durations
    "simulation/test_resume",
    "cli/test_watching",
    "simulation/test_run",
    "configs/test_glue",
    "simulation/test_processes",
    "lowrank/test_lowrank",
    "cli/test_sweep",
    "simulation/test_engine",
    "docs/test_docs",
    "combine/test_around_every_algorithm",
    "tasks/test_language",
    "benchmarks/claims/test_pf2lora_text",
    "data/test_sources",
    "simulation/test_checkpoint",
    "models/test_conv",
    "models/test_encoder",
    "cli/test_cli",
    "lowrank/test_rules",
    "models/test_shapes",
    "cli/test_export",
    "simulation/test_keys",
    "pretrained/test_pretrained",
)
CACHE = TESTS.parent / ".pytest_cache" / "compiled"
MOST = 2**30  # bytes in it, above which it is emptied
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
gc.set_threshold(50_000, 20, 20)
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones refuse the flag's name
    flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax  # noqa: E402 (it reads the above)

jax.config.update("jax_num_cpu_devices", 4)
jax.devices()  # now, or a test that asks for other devices first would have its way


def pytest_configure(config):
    """Empties a cache that has grown too large, before any worker uses it.

    xdist would deal the groups with the most tests first; it is to keep the order of `LONG`.
    """
    config.option.loadscopereorder = False
    if hasattr(config, "workerinput") or not CACHE.is_dir():
        return
    if sum(path.stat().st_size for path in CACHE.iterdir()) > MOST:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def optimised():
    """Programs as users run them, for the tests of one file."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


def file_of(item):
    return item.path.relative_to(TESTS).with_suffix("").as_posix()


def place(item):
    return LONG.index(file_of(item)) if file_of(item) in LONG else len(LONG)


def pytest_collection_modifyitems(config, items):
    """What one worker runs together: a file, for its shared programs; of conformance, a name.

    Workers take the long ones first, so that none has much left when the other ends.
    """
    for item in items:
        named = getattr(item, "callspec", None)
        split = item.path.name == "test_conformance.py" and named is not None
        algorithm = named.params.get("name") if split else None
        group = f"{file_of(item)} {algorithm or ''}".strip()
        item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        items.sort(key=place)
