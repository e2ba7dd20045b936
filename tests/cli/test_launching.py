"""How processes and devices are prepared, with a launcher imitated by its environment."""

from pathlib import Path

import jax
import pytest

from jaxfed.cli import launching
from jaxfed.cli.launching import Launch

pytestmark = pytest.mark.quick

STEP = {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
FOUR = STEP | {"SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
ALL: list[int] = []


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (STEP, ALL),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ALL),
        (FOUR, [2]),
        (FOUR | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2]),
        (FOUR | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [4, 5]),
        (FOUR | {"CUDA_VISIBLE_DEVICES": "0"}, ALL),  # bound to its own by --gpu-bind
        (FOUR | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"}, ALL),
        (FOUR | {"JAX_LOCAL_DEVICE_IDS": "1"}, None),
        ({"SLURM_LOCALID": "3", "SLURM_NTASKS_PER_NODE": "4"}, [3]),
        ({"SLURM_LOCALID": "0"}, ALL),
        (STEP | {"SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}, ALL),
        (STEP | {"SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2"}, [0]),
    ],
)
def test_the_processes_of_a_node_share_its_gpus(environment, gpus):
    assert launching.local_gpus(environment) == gpus


@pytest.fixture
def started(monkeypatch):
    """What jax.distributed.initialize is called with, under SLURM with one process a node."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **named: calls.append((a, named)))
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return calls


def test_one_process_a_node_takes_all_gpus_of_the_node(started):
    launching.prepare_jax(Launch())
    assert started == [((), {"local_device_ids": ALL})]


def test_so_it_does_with_a_coordinator_by_hand(started):
    launching.prepare_jax(Launch(coordinator="here:1", processes=2, process=1))
    assert started == [(("here:1", 2, 1), {"local_device_ids": ALL})]


def test_jax_takes_no_ids_for_all_gpus(monkeypatch):
    """As the empty list is not JAX's default; None under SLURM is one GPU."""
    from jax._src import clusters

    for name, value in (STEP | {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    assert find(None, None, None, ALL, None, 1)[1:] == (2, 1, ALL)
    assert find(None, None, None, None, None, 1)[1:] == (2, 1, [0])


@pytest.mark.parametrize(
    ("environment", "system", "folder"),
    [
        ({}, "linux", ".cache"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", ".cache"),  # which its rules say to ignore
        ({}, "darwin", "Library/Caches"),
        ({}, "win32", "AppData/Local"),
    ],
)
def test_programs_are_kept_where_the_system_keeps_such_files(environment, system, folder):
    found = launching.programs(environment, system)
    assert found.is_relative_to(Path.home() / folder / "jaxfed" / "compiled")


def test_programs_are_kept_where_the_user_says(tmp_path):
    assert launching.programs({"XDG_CACHE_HOME": str(tmp_path)}, "linux").is_relative_to(tmp_path)


def test_a_cache_that_the_user_has_set_stays(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(launching, "programs", lambda *_: tmp_path)
    launching.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert before


def test_without_a_home_or_a_place_to_write_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir

    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    try:
        jax.config.update("jax_compilation_cache_dir", None)
        for place in (homeless, lambda *_: tmp_path / "file" / "kept"):
            monkeypatch.setattr(launching, "programs", place)
            launching.keep_programs()
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_otherwise_one_is_set_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "programs", lambda *_: tmp_path / "kept")
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = [getattr(jax.config, name) for name in names]
    try:
        jax.config.update(names[0], None)
        launching.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "kept")
        assert jax.config.jax_compilation_cache_max_size == launching.KEPT
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
