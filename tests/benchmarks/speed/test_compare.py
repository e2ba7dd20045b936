"""jaxfed and its peers must end with the same weights."""

import compare
import ours
import pytest
import workloads


def test_norms_that_differ_end_the_comparison():
    compare.agree({"jaxfed": [1.0, 2.0], "torch loop2": [1.0, 2.001]})
    with pytest.raises(SystemExit, match="torch loop2 differs after round 2"):
        compare.agree({"jaxfed": [1.0, 2.0], "torch loop2": [1.0, 2.01]})


def test_jaxfed_stands_beside_the_fastest_peer_by_way_of_the_loop():
    seconds = {"jaxfed": {"median": 0.5}, "torch loop2": {"median": 1.0}}
    loop, fastest, _ = compare.TABLE["W3"]
    assert f"takes {0.5 * loop / fastest:.2f} of the" in compare.against_the_fastest("W3", seconds)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "ways"), [("W7 tiny", ("loop", "vmap")), ("W8 tiny", ("loop", "vmap", "peft"))]
)
def test_rounds_of_text_models_end_alike_in_jaxfed_and_its_peers(name, ways):
    """Losses and norms of two rounds, one client at a time and under vmap; in W7 clients keep."""
    torch = pytest.importorskip("torch")
    import torch_peers

    if "peft" in ways:
        pytest.importorskip("peft")
    arrays = workloads.arrays(name)
    base, theta = torch_peers.tensors(name, arrays)
    ((inputs, labels),) = torch_peers.batches(name, arrays.examples, processes=1)
    one_round = ours.make(name, chunk=2)
    mine = [one_round() for _ in range(2)]
    for how in ways:
        model, own = torch_peers.MODELS[name], torch_peers.kept(arrays)
        shard = torch_peers.Shard(name, model, base, theta, inputs, labels, own)
        local = torch_peers.METHODS[how](shard)
        server = torch.cat([w.flatten() for w in theta.values()])
        for expected in mine:
            total, losses = local(server)
            server = total / len(labels)
            assert float(losses.mean()) / len(labels) == pytest.approx(expected["loss"], rel=1e-5)
            assert float(server.norm()) == pytest.approx(expected["norm"], rel=1e-5)
