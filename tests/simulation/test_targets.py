"""Programs compiled for GPUs and TPUs that are not here; without the wheels these are skipped."""

import importlib.util
import re

import elsewhere
import jax
import launched
import lowrank_bytes
import numpy as np
import optax
import pytest
import workloads

from jaxfed import local, lowrank, models, tasks, trees
from jaxfed.algorithms import fedavg
from jaxfed.cli import main
from jaxfed.data import images
from jaxfed.lowrank import fused, kernel
from jaxfed.simulation import hlo, targets


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
NEW = jax.version.__version_info__ >= (0, 12)
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
        pytest.param("h200:16", 16, marks=GPU),
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
@GPU
def test_a_product_for_which_xla_finds_no_tiles_compiles_too():
    grow = images.resize(64)
    step = jax.jit(jax.vmap(lambda pictures: 2 * grow(pictures, None)))
    shapes = (jax.ShapeDtypeStruct((10, 32, 32, 32, 3), np.uint8),)
    (found,) = targets.compiled(targets.target("h100:1"), lambda machine: step, shapes, [10], 1)
    assert found.fits


@pytest.mark.full
@TPU
def test_a_shape_that_no_tpu_has_is_refused():
    with pytest.raises(ValueError, match="tpu:v5e:3x7 is no shape of TPUs"):
        targets.target("tpu:v5e:3x7")


@pytest.mark.full
@GPU
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_describe_compiles_a_round_for_a_target(capsys, monkeypatch):
    added, used = kernel.added, []
    monkeypatch.setattr(kernel, "added", lambda *x, **how: used.append(how) or added(*x, **how))
    asked = ["--for", "h100:2", "--low-rank", "kernel"]
    main.main(["describe", str(launched.SMALL), *asked])
    assert used
    printed = capsys.readouterr().out
    assert "h100:2: 2 x NVIDIA H100 80GB HBM3, each with 63.7 GB" in printed
    assert "for 3 clients at once" in printed
    assert "which fits" in printed
    assert "all-reduce" in printed
    assert "by launches" in printed


# ---------------------------------------------------------------------- programs of rounds
# optimised: as users compile them


@pytest.mark.full
@GPU
def test_clients_with_kernels_of_their_own_need_no_convolution_in_groups(optimised):
    """FEMNIST's network, every weight trained: otherwise five convolutions in 4 groups."""
    program = hlo.parsed(elsewhere.workload(targets.target("h100:1"), "W2", clients=4))
    assert hlo.grouped(program) == []


@pytest.mark.full
@GPU
def test_low_rank_convolutions_need_no_groups_either(optimised):
    examples = elsewhere.images(4 * 8, side=8)
    select = lowrank.Select(factors="^layer.*conv", full="head", rank=4)
    network = models.ResNet((1,), 10, widths=(32,))
    task = tasks.classification(network, examples, select=select)
    fed = fedavg(task, local.Work(8, epochs=1), client_optimizer=optax.sgd(0.1))
    text = elsewhere.text(targets.target("h100:1"), fed, examples, 4, 8)
    assert hlo.grouped(hlo.parsed(text)) == []
    assert not re.search(r"f32\[4,(3,3,32,32|288,32)\]", text)  # a client's copy


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [pytest.param("h100:4", marks=GPU), pytest.param("tpu:v5e:2x2", marks=TPU)]
)
def test_devices_sum_what_is_trained_and_share_one_base(name, optimised):
    """Two clients a device: each product with the base is one of both clients' batches."""
    text = elsewhere.workload(targets.target(name), "W3", clients=8)
    found = elsewhere.collectives(text)
    trained = trees.nbytes(workloads.arrays("W3", 1).factors)
    number, size = found["all-reduce"]
    assert number <= (1 if name.startswith("h100") else 2)
    assert trained <= size < 1.01 * trained
    assert not re.search(r"f32\[2,(784,1024|1024,784|1024,1024)\]", text)
    batch = workloads.WORKLOADS["W3"].batch
    assert re.search(rf"(f32|bf16)\[({2 * batch},(784|1024)|2,{batch},(784|1024))\]", text)


@pytest.mark.full
@GPU
@pytest.mark.parametrize(
    ("form", "forward", "both"), [(None, 5 if NEW else 7, 12 if NEW else 16), ("kernel", 3, 8)]
)
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_one_kernel_moves_fewer_arrays_than_products_do(form, forward, both):
    """In units of a layer's input, and 0.3 for the weights; from JAX 0.12 on XLA fuses more."""
    where, unit = targets.target("h100:1"), lowrank_bytes.unit("W6")
    clients, rows, d, _ = lowrank_bytes.LAYERS["W6"]
    for gradients, arrays in ((False, forward), (True, both)):
        with fused.form(form):
            found = lowrank_bytes.program(where, "W6", gradients=gradients, trained=True)
        work = hlo.work(found)
        assert arrays <= work.bytes / unit < arrays + 0.3
        base = 2 * clients * rows * d * d * (1 + gradients)
        assert base <= work.narrow + work.wide < 1.1 * base
