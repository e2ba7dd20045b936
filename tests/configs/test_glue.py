"""configs/pf2lora/glue.py from files to a record, with a tiny checkpoint and a tiny CoLA."""

import runpy
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiers
import tiny_bert

from jaxfed import Host, run
from jaxfed.cli import describe
from jaxfed.simulation import ledger

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/pf2lora/glue.py"))
ONE_AT_ONCE = Host(devices=1, chunk=1, fuse=1)
FACTORS = 2 * (tiny_bert.WIDTH + tiny_bert.WIDTH)  # query and value, for each rank
HEAD = 2 * tiny_bert.WIDTH + 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("glue")
    return {
        "model": str(tiny_bert.write(place / "bert")),
        "data_dir": str(tiny_bert.write_cola(place / "data")),
    }


def experiment(folders, **settings):
    small = {"rounds": 4, "rank": 4, "personal_rank": 2, "batch_size": 4, "local_steps": 3}
    return CONFIG["experiment"](**folders, **{**small, **settings})


@pytest.mark.parametrize("method", tiers.usual(get_args(CONFIG["Method"]), "pf2lora", "hetlora"))
def test_every_method_sends_its_share(folders, method):
    """All common factors and the head, but for what FedPer and FedSA-LoRA keep at home."""
    made = experiment(folders, method=method)
    server = jax.eval_shape(made.algorithm.init, jax.random.key(0))
    state = jax.eval_shape(made.algorithm.init_client, server, jax.random.key(0))
    states = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)] * made.cohort
    world = oracle.World(made.data.train.examples, made.data.train.count)
    wire, _ = ledger.most(
        made.algorithm, server, oracle.cohort(world, states, range(made.cohort), 0)
    )
    kept = {"fedper": 4 * FACTORS, "fedsa": 4 * FACTORS // 2}
    assert wire == 2 * (4 * kept.get(method, 4 * FACTORS + HEAD),)
    assert made.rounds == (12 if method == "centralised" else 4)


def test_a_run_starts_at_the_checkpoint_with_a_head_of_its_own(folders):
    algorithm = experiment(folders, method="homlora").algorithm
    first, second = (algorithm.init(jax.random.key(seed)) for seed in (0, 1))
    expected = tiny_bert.tensors()["bert.encoder.layer.0.attention.self.query.weight"].T
    np.testing.assert_array_equal(first.base["layer_0/query/kernel"], expected)
    assert set(first.theta.full) == {"head/kernel", "head/bias"}
    assert (first.theta.full["head/kernel"] != second.theta.full["head/kernel"]).all()


def test_a_client_is_tested_on_labels_like_its_own(folders):
    data = experiment(folders, similarity=0.0).data
    assert (data.clients, data.personal.count.sum()) == (8, 60)
    for k in range(data.clients):
        mine, test = (
            part.examples["label"][part.start[k] : part.start[k] + part.count[k]]
            for part in (data.train, data.personal)
        )
        assert len(set(mine.tolist())) == 1
        np.testing.assert_allclose(test.mean(), mine.mean(), atol=0.3)


@pytest.mark.full
def test_pf2lora_learns_and_is_measured_by_matthews_correlation(folders):
    settings = {"learning_rate": 0.05, "personal_learning_rate": 0.05, "rounds": 30}
    *_, last = run(experiment(folders, similarity=0.5, **settings), host=ONE_AT_ONCE)
    assert last["matthews"] > 0.8
    assert set(last["personal"]) == {"loss", "accuracy", "matthews"}
    assert last["personal"]["matthews"]["union"] > 0.8
    assert last["up"] == 8 * 4 * (4 * FACTORS + HEAD)


@pytest.mark.full
def test_a_rate_of_zero_is_a_rate(folders):
    """Nothing of what is common moves."""
    made = experiment(folders, method="homlora", learning_rate=0.0, rounds=1, weight_decay=0.0)
    algorithm = made.algorithm
    server = algorithm.init(jax.random.key(0))
    world = oracle.World(made.data.train.examples, made.data.train.count)
    after, _, _ = oracle.rounds(algorithm, world, [range(2)])
    oracle.assert_close(after.theta, server.theta, rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"personal_optimizer": "adamw", "personal_head": True},
        {"up": "random", "gradient": "simultaneous", "personal_learning_rate": 1.0},
        {"method": "homlora", "deploy_steps": 2},
        {"method": "homlora", "keep_moments": True},
        {"method": "fedper", "keep_moments": True},
        {"method": "alone"},
    ],
    ids=str,
)
@pytest.mark.full
def test_every_option_runs(folders, settings):
    *_, last = run(experiment(folders, rounds=1, **settings), host=ONE_AT_ONCE)
    assert np.isfinite(last["personal"]["loss"]["mean"])


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedper", "fedsa"])
def test_heads_start_alike_unless_clients_draw_their_own(folders, method):
    for common in (True, False):
        algorithm = experiment(folders, method=method, common_start=common).algorithm
        server = algorithm.init(jax.random.key(0))
        heads = [
            algorithm.deploy(server, algorithm.init_client(server, jax.random.key(i)))[1].full
            for i in range(2)
        ]
        assert bool((heads[0]["head/kernel"] == heads[1]["head/kernel"]).all()) is common


def test_what_is_lost_to_padding_is_told(folders):
    data = experiment(folders, max_length=8, test_length=8).data
    real = (data.train.examples["tokens"] != tiny_bert.PAD).mean()
    said = f"8 tokens an example, of which {1 - real:.1%} are padding"
    assert said in describe.population(data.train, 8)


def test_options_of_pf2lora_are_refused_elsewhere(folders):
    with pytest.raises(ValueError, match="options of pf2lora, not of homlora"):
        experiment(folders, method="homlora", personal_head=True)
