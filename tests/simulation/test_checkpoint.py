"""Checkpoints: bit for bit, whatever happens to the disk or to the process."""

import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfed import lowrank
from jaxfed.simulation import checkpoint


class Server(NamedTuple):
    base: Any
    theta: Any
    opt: Any


def state_of(t, size=64):
    """A state that round t determines: (server, kept states of clients)."""
    key = jax.random.fold_in(jax.random.key(0), t)
    kernel = jax.random.normal(key, (size, 3))
    theta = lowrank.Theta(
        full={"dense/bias": kernel[0].astype(jnp.bfloat16)},
        factors={"layer1_0/conv_0/kernel": lowrank.Factors(kernel, kernel.T * 2, scale=0.5)},
    )
    server = Server(
        base={"layer1_0/conv_0/kernel": kernel + 1, "a.b": jnp.zeros((0, 3)), "a": {"b": kernel}},
        theta=theta,
        opt=optax.adam(1e-3).init(theta),
    )
    return server, {"drift": jnp.full((5, 2), t, jnp.int32), "seen": jnp.arange(5) < t, "none": ()}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Opens checkpoints in one folder, as often as a test likes, and closes them all."""
    with contextlib.ExitStack() as stack:

        def opened(directory=tmp_path / "run"):
            return stack.enter_context(contextlib.closing(checkpoint.open_folder(directory)))

        yield opened


def saved(checkpoints, rounds, scores=None):
    for t in rounds:
        score = scores[t] if scores else None
        checkpoints.save(t, state_of(t), score=score, extra={"t": t})
    checkpoints.wait()
    return checkpoints


def test_what_is_restored_is_what_was_saved_in_every_bit(folder):
    saved(folder(), [1, 2])
    t, state, extra = folder().restore(jax.eval_shape(lambda: state_of(0)))
    assert (t, extra) == (2, {"t": 2})
    assert_same(state, state_of(2))


def test_nan_infinity_and_negative_zero_keep_their_bits(folder):
    state = jnp.array([jnp.nan, -jnp.nan, jnp.inf, -0.0, 1e-42])
    checkpoints = folder()
    checkpoints.save(1, state)
    assert_same(checkpoints.restore(state)[1], state)


@pytest.mark.parametrize("state", [(), {}, {"empty": jnp.zeros((0, 4))}, jnp.float32(3), {"n": 3}])
def test_small_states_are_states(folder, state):
    checkpoints = folder()
    checkpoints.save(0, state)
    checkpoints.wait()
    _, found, _ = checkpoints.restore(state)
    assert_same(*jax.tree.map(jnp.asarray, (found, state)))


def test_host_arrays_stay_on_the_host(folder):
    state = {"kept": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "one": jnp.ones(3)}
    checkpoints = folder()
    checkpoints.save(1, state)
    checkpoints.wait()
    _, found, _ = checkpoints.restore(state)
    assert isinstance(found["kept"], np.ndarray)
    assert found["kept"].dtype == np.float64
    np.testing.assert_array_equal(found["kept"], state["kept"])


def test_arrays_go_where_the_target_says(folder):
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("devices",)), jax.sharding.PartitionSpec("devices")
    )
    checkpoints = saved(folder(), [1])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) if x.ndim else x,
        state_of(1),
    )
    _, state, _ = checkpoints.restore(target)
    assert state[0].base["a"]["b"].sharding == sharding
    assert_same(state, state_of(1))


def test_the_state_may_be_donated_right_after_save(folder):
    overwrite = jax.jit(partial(jax.tree.map, lambda x: x * 0 - 1), donate_argnums=0)
    checkpoints = folder()
    for t in range(1, 6):
        state = {"w": jnp.full((512, 1024), t, jnp.float32), "b": jnp.full(7, t, jnp.float32)}
        checkpoints.save(t, state)
        state = overwrite(state)
        _, found, _ = checkpoints.restore(state)
        assert_same(found, {"w": np.full((512, 1024), t, "f4"), "b": np.full(7, t, "f4")})


def test_a_host_array_may_be_overwritten_right_after_save(folder):
    checkpoints = folder()
    kept = np.arange(1e6)
    checkpoints.save(1, kept)
    kept[:] = -1
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(kept)[1], np.arange(1e6))


def test_none_is_restored_from_an_empty_folder(folder):
    assert folder().restore(state_of(0)) is None
    assert folder().best is None


def test_the_newest_two_and_the_best_are_kept(folder):
    scores = {1: 0.1, 2: 0.7, 3: 0.7, 4: None, 5: float("nan"), 6: 0.2, 7: 0.3}
    checkpoints = saved(folder(), range(1, 8), scores)
    assert checkpoints.rounds == [2, 6, 7]
    assert checkpoints.best == 2
    assert_same(checkpoints.load(2, state_of(0))[0], state_of(2))


def test_the_best_is_remembered_by_a_resumed_run(folder):
    saved(folder(), [1, 2, 3], {1: 0.9, 2: 0.1, 3: 0.1})
    checkpoints = saved(folder(), [4, 5], {4: 0.2, 5: 0.3})
    assert checkpoints.rounds == [1, 4, 5]
    assert saved(checkpoints, [6, 7], {6: 0.95, 7: 0.3}).rounds == [6, 7]


def test_without_scores_the_newest_two_are_kept(folder):
    assert saved(folder(), range(5)).rounds == [3, 4]


def test_an_earlier_checkpoint_goes_only_when_a_later_one_is_complete(folder):
    checkpoints = saved(folder(), [1, 2])
    directory = Path(checkpoints.manager.directory)
    checkpoints.save(3, state_of(3))
    while not (directory / "3").exists():
        assert {"1", "2"} <= set(os.listdir(directory))
    checkpoints.wait()
    assert checkpoints.rounds == [2, 3]


def test_other_settings_are_refused_with_the_first_path_that_differs(folder):
    checkpoints = saved(folder(), [1])
    with pytest.raises(
        ValueError, match=r"\[0\]\.base\['a'\]\['b'\] as float32\[64, 3\], and.*32, 3"
    ):
        checkpoints.restore(state_of(1, size=32))
    with pytest.raises(
        ValueError, match=r"\[0\]\['x'\] as nothing, and these settings make it int"
    ):
        checkpoints.restore(({"x": jnp.int32(0)},))
    assert checkpoints.rounds == [1]


def damage(file, how):
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "missing":
        file.unlink()
    if how == "cut":
        file.write_bytes(content[:middle])
    if how == "flipped" and content:
        flipped = bytes([content[middle] ^ 16])
        file.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_any_damaged_file_costs_at_most_one_checkpoint(folder, tmp_path, how):
    directory = Path(saved(folder(), [1, 2]).manager.directory)
    files = [f.relative_to(directory) for f in (directory / "2").rglob("*") if f.is_file()]
    fallbacks = 0
    for number, file in enumerate(files):
        copy = shutil.copytree(directory, tmp_path / str(number))
        damage(copy / file, how)
        checkpoints = folder(copy)
        t, state, extra = checkpoints.restore(state_of(0))
        assert_same(state, state_of(t))
        assert extra == {"t": t}
        fallbacks += t == 1
        assert saved(checkpoints, [t + 1, t + 2]).rounds == [t + 1, t + 2]
    assert fallbacks >= 3  # the files that hold arrays and the record; others hold nothing we need


def newest_record(checkpoints):
    return Path(checkpoints.manager.directory) / str(checkpoints.rounds[-1]) / "record" / "metadata"


def test_a_damaged_checkpoint_is_passed_over_with_one_sentence(folder):
    damage(newest_record(saved(folder(), [1, 2])), "flipped")
    checkpoints = folder()
    with pytest.warns(UserWarning, match=r"damaged.*round 2 \(.*goes on from round 1") as said:
        t, state, _ = checkpoints.restore(state_of(0))
    assert len(said) == 1
    assert t == 1
    assert_same(state, state_of(1))
    assert saved(checkpoints, [2]).rounds == [1, 2]
    assert_same(checkpoints.restore(state_of(0))[1], state_of(2))


def test_a_damaged_copy_of_a_round_may_be_met_twice(folder):
    for _ in range(2):
        checkpoints = saved(folder(), [2]) if folder().rounds else saved(folder(), [1, 2])
        damage(newest_record(checkpoints), "cut")
        with pytest.warns(UserWarning, match="damaged"):
            assert folder().restore(state_of(0))[0] == 1


def test_if_all_are_damaged_the_error_says_what_to_do(folder):
    directory = Path(saved(folder(), [1, 2]).manager.directory)
    for record in directory.glob("*/record/metadata"):
        damage(record, "cut")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* is intact: round 2 .*round 1.*bring back"
    ):
        folder().restore(state_of(0))
    assert folder().rounds == [1, 2]


def test_a_damaged_best_is_an_error_and_no_other_model(folder):
    checkpoints = saved(folder(), [1, 2, 3], {1: 0.9, 2: 0.1, 3: 0.1})
    damage(Path(checkpoints.manager.directory) / "1" / "record" / "metadata", "flipped")
    with pytest.raises(ValueError, match=r"changed on disk|Expecting|delimiter|Invalid"):
        checkpoints.load(checkpoints.best, state_of(0))


def python(code, *arguments):
    """A process of its own that imports as little as it can."""
    header = "import sys, numpy as np; from jaxfed.simulation import checkpoint\n"
    command = [sys.executable, "-c", header + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


SAVE_FOR_EVER = """
import numpy as np
from jaxfed.simulation import checkpoint
folder, ready = values
checkpoints = checkpoint.open_folder(folder)
found = checkpoints.restore(np.zeros(60_000))
t = found[0] if found else 0
ready.touch()
while True:
    t += 1
    state = np.random.default_rng(t).normal(size=60_000)
    checkpoints.save(t, state, score=0.0, extra={"t": t})
"""


@pytest.mark.full
def test_a_run_killed_at_any_instant_leaves_an_intact_checkpoint(folder, tmp_path):
    """Ten kills of one run, which resumes after each and saves all the time in between."""
    reached = 0
    for kill in range(10):
        ready = tmp_path / f"ready {kill}"
        process = forked.started(SAVE_FOR_EVER, tmp_path / "run", ready)
        while not ready.exists():
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(random.Random(kill).uniform(0.0 if reached else 0.5, 0.8))
        process.kill()
        process.join()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="damaged")
            warnings.filterwarnings("ignore", message=".*was being written")
            checkpoints = folder()
            t, state, extra = checkpoints.restore(np.zeros(60_000))
        checkpoints.close()
        assert t >= reached
        assert extra == {"t": t}
        assert state.tobytes() == np.random.default_rng(t).normal(size=60_000).tobytes()
        reached = t
    assert reached > 10


def test_a_half_written_checkpoint_is_said_and_removed(folder):
    directory = Path(saved(folder(), [1]).manager.directory)
    shutil.copytree(directory / "1", directory / "2.orbax-checkpoint-tmp")
    with pytest.warns(UserWarning, match=r"2\.orbax.* was being written when its run stopped"):
        checkpoints = folder()
    assert checkpoints.restore(state_of(0))[0] == 1
    saved(checkpoints, [2])
    assert sorted(os.listdir(directory)) == ["1", "2"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def noise(t):
    return np.random.default_rng(t).integers(0, 256, 700_000, np.uint8)


def save_all(checkpoints, rounds):
    for t in rounds:
        checkpoints.save(t, noise(t))


def test_a_full_disk_stops_the_run_with_a_sentence_and_no_loss(small_disk):
    checkpoints = checkpoint.open_folder(small_disk / "run")
    with pytest.raises(
        OSError, match=r"No space left on device; earlier ones are intact, .* resume"
    ):
        save_all(checkpoints, range(1, 5))
    checkpoints.close()
    with pytest.warns(UserWarning, match="was being written"):
        resumed = checkpoint.open_folder(small_disk / "run")
    t, state, _ = resumed.restore(noise(0))
    resumed.close()
    assert resumed.rounds == [t - 1, t]
    np.testing.assert_array_equal(state, noise(t))


SAVE_BEYOND_THE_LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = checkpoint.open_folder(sys.argv[1])
checkpoints.save(1, np.ones(3))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(2, np.random.default_rng(0).normal(size=100_000))
try:
    checkpoints.wait()
except OSError as error:
    print(error)
checkpoints.close()
print(checkpoints.restore(np.ones(3))[0])
"""


def test_a_file_that_may_not_grow_is_one_sentence_too(tmp_path):
    out, err = python(SAVE_BEYOND_THE_LIMIT, tmp_path / "run").communicate()
    sentence, newest = out.decode().splitlines()
    assert "File too large; earlier ones are intact" in sentence, err.decode()
    assert newest == "1"


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        NotADirectoryError(20, "Not a directory"),
        ValueError("PERMISSION_DENIED: Error opening [os_error_code='13']"),
    ],
)
def test_what_the_system_refuses_to_read_is_no_damage(folder, monkeypatch, error):
    checkpoints = saved(folder(), [1, 2])

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_read_record", refuse)
        with pytest.raises(OSError, match=r"could not be read: .*; put this right"):
            checkpoints.restore(state_of(0))
    assert checkpoints.restore(state_of(0))[0] == 2


def test_what_orbax_logs_is_not_shown_and_what_others_log_is(folder, caplog):
    saved(folder(), [1])
    for place, shown in (("/lib/orbax/checkpoint/a.py", False), ("/lib/other/a.py", True)):
        record = logging.LogRecord("absl", logging.ERROR, place, 1, "failed", (), None)
        assert bool(logging.getLogger("absl").filter(record)) == shown
