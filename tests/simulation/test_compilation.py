"""In which form rounds are compiled, and that a resumed run keeps it."""

import json

import flax.linen as nn
import numpy as np
import optax
import pytest

import jaxfed
from jaxfed import local, tasks
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, sources
from jaxfed.models import conv
from jaxfed.simulation import compilation, tuning
from jaxfed.simulation.prepare import prepare


class Convolution(nn.Module):
    """Two classes by one convolution that Winograd could compute."""

    @nn.compact
    def __call__(self, image):
        layer = nn.Conv(16, (3, 3), conv_general_dilated=conv.convolve)
        return nn.Dense(2)(layer(image).mean((1, 2)))


def experiment(rounds):
    random = np.random.default_rng(0)
    train, test = (
        {
            "image": random.normal(size=(8, 4, 4, 16)).astype(np.float32),
            "label": np.arange(8, dtype=np.int32) % 2,
        }
        for _ in range(2)
    )
    data = federate(sources.Source(train, test), np.split(np.arange(8), 4))
    task = tasks.classification(Convolution(), test)
    fed = fedavg(task, local.Work(2, epochs=1), client_optimizer=optax.sgd(0.1))
    return jaxfed.Experiment(data, fed, rounds=rounds, cohort=2, evaluate_every=0)


@pytest.fixture
def asked(monkeypatch):
    """The lowerings that a run might have taken; it measures that patches are the fastest."""
    asked = []

    def measured(make, machine, arguments, default, others, calls):
        asked.append(others)
        return "patches" if others else None

    monkeypatch.setattr(tuning, "measured_lowering", measured)
    return asked


def settled(records):
    return [{n: v for n, v in r.items() if n != "seconds"} for r in records]


@pytest.mark.full
def test_a_resumed_run_keeps_the_lowering_that_was_measured_and_ends_in_the_same_bits(
    tmp_path, asked
):
    begun = list(jaxfed.run(experiment(2), tmp_path, jaxfed.Host(devices=1)))
    assert asked == [conv.alternatives("cpu")]
    kept = json.loads((tmp_path / "host.json").read_text())
    assert (kept["convolutions"], kept["fuse"]) == ("patches", 1)
    ended = list(jaxfed.run(experiment(4), tmp_path, jaxfed.Host(devices=1), resume=True))
    assert len(asked) == 1
    host = jaxfed.Host(devices=1, chunk=kept["chunk"], fuse=1, convolutions="patches")
    assert settled(begun + ended) == settled(jaxfed.run(experiment(4), host=host))
    del kept["convolutions"]  # as a run before there was a choice
    (tmp_path / "host.json").write_text(json.dumps(kept))
    jaxfed.run(experiment(5), tmp_path, jaxfed.Host(devices=1), resume=True).close()
    assert json.loads((tmp_path / "host.json").read_text())["convolutions"] == "default"


@pytest.mark.full
@pytest.mark.parametrize(("saved", "fuse"), [(10.0, 2), (0.0, 1)])
def test_rounds_are_fused_where_that_saves_more_than_their_compilation(monkeypatch, saved, fuse):
    best = tuning.Measured(2, 1e-3, compiling=5.0, program=None)
    monkeypatch.setattr(tuning, "measured_chunk", lambda *_: best)
    monkeypatch.setattr(compilation, "SAVED", saved)
    host = jaxfed.Host(devices=1, convolutions="default")
    prepared = prepare(experiment(2), host, compiling=False)
    prepared.close()
    assert prepared.form == (2, fuse, "default", "products")


@pytest.mark.quick
def test_a_lowering_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="convolutions='fft'; use one of"):
        jaxfed.Host(convolutions="fft")


@pytest.mark.quick
def test_a_kernel_for_gpus_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="kernel for GPUs, and this is a CPU; use 'products'"):
        prepare(experiment(1), jaxfed.Host(devices=1, low_rank="kernel"))
