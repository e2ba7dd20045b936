"""`jaxfed analyse` on a run's folder: against closed forms and against what the run went on to do.

The run has three rounds, with a checkpoint after each; the oldest is gone.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import ranked

from jaxfed import Host, run
from jaxfed.analysis import probe, tables
from jaxfed.cli import main

CONFIG = Path(__file__).parents[1] / "support/ranked.py"
EVERYBODY = tuple(range(ranked.CLIENTS))
QUICK = ("--chunk", "4", "--fuse", "1", "--devices", "1", "--checkpoint-every", "1")


def command(*arguments):
    main.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "r"
    command("run", CONFIG, "--out", place, *QUICK)
    return place


def files(place):
    """{path: content} of what a run needs to go on."""
    kept = {"plots", "tensorboard"}
    return {
        str(path): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not kept & set(path.relative_to(place).parts)
    }


def softmax_hessian(weights, x):
    """Of the mean cross-entropy over bias and kernel: mean (diag p - p p') (x) (1, x)(1, x)'."""
    logits = x @ weights["head/kernel"] + weights["head/bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_logits = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - np.einsum("nc,nd->ncd", p, p)
    one = np.c_[np.ones(len(x)), x]
    n = one.shape[1] * p.shape[1]
    return np.einsum("ncd,ni,nj->icjd", of_logits, one, one).reshape(n, n) / len(x)


@pytest.mark.full
def test_a_run_from_python_and_its_spectra_by_hand(tmp_path, capsys):
    """Softmax regression as it began; with fifteen weights and twenty steps nothing is chance."""
    e = ranked.experiment(method="fedavg", rounds=1)
    list(run(e, tmp_path / "r", Host(chunk=4, fuse=1, devices=1)))
    with pytest.raises(SystemExit):
        command("analyse", tmp_path / "r")
    assert "its run was begun from Python; analyse it there" in capsys.readouterr().err

    asked = probe.Probe(round=0, clients=(3, 1), ranks=(1, 3), batch=7)
    found = probe.of_run(e, tmp_path / "r", asked)
    weights = e.algorithm.init(jax.random.key(e.seed)).theta.full
    weights = {p: np.asarray(w, np.float64) for p, w in weights.items()}
    train = e.data.train
    own = [np.arange(train.start[k], train.start[k] + train.count[k]) for k in (3, 1)]
    image = train.examples["image"].astype(np.float64)
    for i, rows in enumerate([*own, np.arange(60)]):
        mine = found.server if i == 2 else jax.tree.map(lambda x, i=i: x[i], found.clients)
        values = np.linalg.eigvalsh(softmax_hessian(weights, image[rows]))
        np.testing.assert_allclose(mine.norm, values[-1], rtol=1e-4)
        np.testing.assert_allclose(mine.squared, np.sum(values**2), rtol=1e-4)
    assert (found.parameters, found.discrepancy, found.share) == (15, None, 0)
    assert not found.layers  # nothing has moved
    np.testing.assert_array_equal(found.sizes, train.count[[3, 1]])
    for kinds in (found.gradients, found.updates):
        assert set(kinds) == {"whole", "rank 1", "rank 3"}
        np.testing.assert_allclose(kinds["rank 3"], kinds["whole"], atol=1e-5)
    alone = found._replace(gradients={}, updates={})
    assert "there is only one client" in tables.tables(alone)


@pytest.mark.full
def test_a_round_told_from_its_checkpoint_is_the_one_that_was_run(folder, capsys):
    """Server, every client's c_i, keys and weights: or the discrepancy would be another."""
    before = files(folder)
    command("analyse", folder, "--round", 2, "--clients", *EVERYBODY, "--probes", 4, "--depth", 8)
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = records[2]["discrepancy"]
    assert told > 0.02
    assert f"averaging A and B separately loses {100 * told:.3g} % of the mean product" in printed
    for said in ("r after round 2", "client 3", "gradients, rank 16", "updates, as sent"):
        assert said in printed
    assert "head/kernel" in printed
    assert "lies in the Hessian's top 5 eigenvectors; of a random change 33.33% would" in printed
    names = ("stable_rank", "hessian_density", "cosines", "update_singular_values")
    assert {p.stem for p in (folder / "plots").iterdir()} >= set(names)
    assert files(folder) == before


WRONG = {
    "a round without a checkpoint": (
        ("--round", 7),
        "no checkpoint of round 7; it has 2, 3, and 0",
    ),
    "no such client": (("--clients", 0, 4), "no client 4; use ids from 0 to 3"),
    "a client below zero": (("--clients=-1",), "clients[0]=-1"),
    "a client twice": (("--clients", 2, 2), "names one twice"),
    "no such part": (("--part", "head"), "--part wants"),
    "no such path": (("--paths", "convolution"), "is chosen"),
    "no expression": (("--paths", "("), "is no regular expression"),
    "no option": (("--rounds", 2), "did you mean --round?"),
    "one probe": (("--probes", 1), "probes=1; use at least 2"),
    "more eigenvectors than steps": (("--top", 9, "--depth", 4), "top=9"),
    "no rank": (("--ranks", 0), "ranks[0]=0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_sentence(what, folder, capsys):
    arguments, said = WRONG[what]
    with pytest.raises(SystemExit) as ended:
        command("analyse", folder, *arguments)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in printed
    assert "Traceback" not in printed


def test_there_must_be_a_run(tmp_path, capsys):
    for arguments, said in (((), "jaxfed analyse DIR"), ((tmp_path,), "has no settings.json")):
        with pytest.raises(SystemExit):
            command("analyse", *arguments)
        assert said in capsys.readouterr().err
