"""Programs compiled for GPUs and TPUs that are not here; without the wheels these are skipped."""

import importlib.util

import jax
import launched
import pytest

from jaxfed.cli import main
from jaxfed.simulation import targets


def installed(*modules):
    def found(module):
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return all(map(found, modules))


GPU = pytest.mark.skipif(
    not installed("jax_plugins.xla_cuda13", "nvidia"), reason="without jaxfed[targets]"
)
TPU = pytest.mark.skipif(not installed("libtpu"), reason="without jaxfed[targets]")


@pytest.mark.quick
@pytest.mark.parametrize("name", ["h300:1", "h100", "tpu:h100:1", "v5e:2x2", "h100:0", "h100:9"])
def test_a_name_that_is_no_target_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"such as h100:1|use that many"):
        targets.target(name)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["h100:1", "tpu:v5e:2x2"])
def test_without_the_wheels_a_sentence_has_the_remedy(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'jaxfed\[targets\]'"):
        targets.target(name)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param("h100:8", 8, marks=GPU),
        pytest.param("h200:1", 1, marks=GPU),
        pytest.param("a100:1", 1, marks=GPU),
        pytest.param("tpu:v5e:2x2", 4, marks=TPU),
    ],
)
def test_this_version_of_jax_compiles_for_a_target_and_says_what_memory_it_takes(name, devices):
    where = targets.target(name)
    assert len(where.devices) == devices
    shape = jax.ShapeDtypeStruct((256, 256), "float32")

    def make(machine):
        return jax.jit(lambda x: jax.numpy.tanh(x @ x) @ x)

    (found,) = targets.compiled(where, make, (shape,), [1], turns=1)
    assert found.fits
    assert found.arguments >= 2 * 4 * 256**2
    assert found.work.wide + found.work.narrow == 2 * 2 * 256**3
    bounds = targets.seconds(where.device, found.work)
    assert 0 < bounds["arithmetic"] < 1e-3
    assert (bounds["launches"] > 0) == (where.platform == "cuda")


@pytest.mark.full
@TPU
def test_a_shape_that_no_tpu_has_is_refused():
    with pytest.raises(ValueError, match="tpu:v5e:3x7 is no shape of TPUs"):
        targets.target("tpu:v5e:3x7")


@pytest.mark.full
@GPU
def test_describe_compiles_a_round_for_a_target(capsys):
    main.main(["describe", str(launched.SMALL), "--for", "h100:2"])
    printed = capsys.readouterr().out
    assert "h100:2: 2 x NVIDIA H100 80GB HBM3, each with 63.7 GB" in printed
    assert "for 3 clients at once" in printed
    assert "which fits" in printed
    assert "all-reduce" in printed
    assert "by launches" in printed
