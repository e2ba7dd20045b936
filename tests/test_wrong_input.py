"""Wrong input: the right error, with the value and the remedy in it, before a round is run.

One table for Python and the command line; a case is (what is wrong, call, error, part of its
sentence).
"""

import json
import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfed
from jaxfed import algorithm, combine, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, fedprox, hetlora
from jaxfed.cli import main
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import restarts

pytestmark = pytest.mark.quick

SMALL = Path(__file__).with_name("support") / "small.py"
WORK = local.Work(10, epochs=1)
SGD = optax.sgd(0.1)


def source(labels=10, n=40):
    rows = np.arange(n)
    examples = {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": (rows % labels).astype(int)}
    return sources.arrays(examples, {key: x[:10] for key, x in examples.items()})


def data(labels=10, clients=4, **options):
    found = source(labels)
    return federate(found, partition.iid(40, clients, seed=0), **options)


def classification(classes=10, **select):
    chosen = lowrank.Select(**select) if select else lowrank.everything
    return tasks.classification(models.MLP((4,), classes), source().test, select=chosen)


def factors(**select):
    return classification(factors="dense", **select)


def experiment(made=None, **changes):
    made = made or fedavg(classification(), WORK, client_optimizer=SGD)
    settings = {"rounds": 2, "cohort": 2, "data": data(), **changes}
    return jaxfed.Experiment(algorithm=made, **settings)


def run(made=None, host=None, directory=None, resume=False, **changes):
    return jaxfed.run(experiment(made, **changes), directory, host, resume=resume)


def mixed(clients):
    """HETLoRA, which is told the rank of each client."""
    return hetlora(
        factors(rank=2),
        WORK,
        least=1,
        most=2,
        gamma=0.9,
        penalty=0.0,
        client_optimizer=SGD,
        ranks=[1] * clients,
    )


def closing_over_an_array():
    shift = jnp.ones(3)
    plain = fedavg(classification(), WORK, client_optimizer=SGD)

    def client(base, theta, k):
        return algorithm.Reply(shift, (), {})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        return server, reply.state, reply.metrics

    return run(plain._replace(run_round=run_round))


def written(path, content):
    Path(path).write_text(content)
    return path


def npz(**arrays):
    np.savez("mine.npz", **arrays)
    return sources.npz("mine.npz")


def begun(folder="begun", **settings):
    """A folder that looks like a run's, and holds no checkpoint."""
    Path(folder).mkdir()
    content = {
        "arguments": [],
        "settings": {},
        "launch": {},
        "experiment": {"rounds": 2, "cohort": 2, **settings},
    }
    written(f"{folder}/settings.json", json.dumps(content))
    return folder


def command(*arguments):
    main.main(list(map(str, arguments)))


def config(body, *arguments):
    command("run", written("mine.py", body), *arguments)


def run_in_a_folder_with(*names):
    for name in names:
        written(name, "mine")
    return run(directory=".")


def unprepared():
    return sources.tfds("mnist", data_dir=Path.cwd())


def resumed(**changes):
    return run(directory=begun(**changes), resume=True)


def damaged_settings():
    begun()
    written("begun/settings.json", '{"rounds": ')
    command("resume", "begun")


small = partial(command, "run", SMALL)

CASES = [
    # the experiment
    ("rounds 0", partial(run, rounds=0), ValueError, "rounds=0; use at least 1"),
    ("half a round", partial(run, rounds=1.5), TypeError, "rounds=1.5 is a float"),
    ("rounds True", partial(run, rounds=True), TypeError, "rounds=True is a bool"),
    ("cohort 0", partial(run, cohort=0), ValueError, "cohort=0; use at least 1"),
    ("too few ranks", lambda: run(mixed(2)), ValueError, "made for 2 clients"),
    ("cohort above all", partial(run, cohort=5), ValueError, "cohort=5 clients a round out of 4"),
    ("seed below 0", partial(run, seed=-1), ValueError, "seed=-1; use at least 0"),
    ("seed too large", partial(run, seed=2**32), ValueError, "below 2**32"),
    ("evaluate below 0", partial(run, evaluate_every=-1), ValueError, "evaluate_every=-1"),
    ("evaluate by 0", partial(run, evaluate_batch=0), ValueError, "evaluate_batch=0; use at least"),
    ("a source as data", lambda: run(data=source()), TypeError, "data is a Source; give a Feder"),
    ("no algorithm", partial(run, made="fedavg"), TypeError, "algorithm is a str; give a Algor"),
    ("training labels", lambda: run(data=data(labels=11)), ValueError, "0 to 10, but the model ha"),
    # how it is run
    ("chunk 0", lambda: jaxfed.Host(chunk=0), ValueError, "chunk=0; use at least 1"),
    ("chunk all", lambda: jaxfed.Host(chunk="all"), TypeError, "chunk='all' is a str"),
    ("fuse -1", lambda: jaxfed.Host(fuse=-1), ValueError, "fuse=-1; use at least 1"),
    ("checkpoint -1", lambda: jaxfed.Host(checkpoint_every=-1), ValueError, "checkpoint_every=-1"),
    (
        "nonfinite",
        lambda: jaxfed.Host(nonfinite="ignore"),
        ValueError,
        "use one of ('stop', 'skip'",
    ),
    ("population", lambda: jaxfed.Host(population="disk"), ValueError, "use one of ('auto', 'dev"),
    ("merges", lambda: jaxfed.Host(merges="never"), ValueError, "use one of ('eager', 'lazy')"),
    ("stream", lambda: jaxfed.Host(stream="no"), ValueError, "stream='no'; use True, False"),
    ("devices", lambda: run(host=jaxfed.Host(devices=99)), ValueError, "devices=99, but JAX sees"),
    # folders
    ("a run there", lambda: run(directory=begun()), FileExistsError, "jaxfed resume begun"),
    ("files there", lambda: run_in_a_folder_with("config.py"), FileExistsError, "has config.py, b"),
    ("a file", lambda: run(directory=written("f", "")), FileExistsError, "f is a file; choose ano"),
    ("no run", lambda: run(directory="x", resume=True), FileNotFoundError, "no settings.json"),
    ("resume nowhere", lambda: run(resume=True), ValueError, "needs the directory of a run"),
    ("another seed", lambda: resumed(seed=3), ValueError, "started with seed=3, not 0"),
    ("another cohort", lambda: resumed(cohort=3), ValueError, "started with cohort=3, not 2"),
    # algorithms and tasks
    ("rank", lambda: factors(rank=5), ValueError, "(5 > 4)"),
    ("rank 0", lambda: factors(rank=0), ValueError, "rank must be at least 1"),
    ("no rank", factors, ValueError, "factors need a rank or a fraction"),
    ("fraction", lambda: factors(fraction=1.5), ValueError, "fraction=1.5 is not in (0, 1]"),
    ("fraction small", lambda: factors(fraction=1e-6), ValueError, "use at least 0."),
    ("no match", lambda: classification(full="attention"), ValueError, "'attention' matches none"),
    ("nothing", lambda: lowrank.Select(), ValueError, "nothing is trained"),
    (
        "all zero",
        lambda: factors(rank=1, base="zero", up="zero"),
        ValueError,
        "no gradient leaves",
    ),
    ("labels", lambda: classification(classes=5), ValueError, "the model has 5 outputs"),
    ("an array", closing_over_an_array, TypeError, "closes over the array 'shift'"),
    (
        "mu",
        lambda: fedprox(classification(), WORK, mu=-1.0, client_optimizer=SGD),
        ValueError,
        "mu=-1.0",
    ),
    (
        "every 0",
        lambda: combine.accumulate(experiment().algorithm, every=0, restart=restarts.keep),
        ValueError,
        "use a whole number of rounds from 1",
    ),
    (
        "nothing to merge",
        lambda: run(combine.accumulate(experiment().algorithm, every=2, restart=restarts.keep)),
        ValueError,
        "nothing to merge",
    ),
    ("no work", lambda: local.Work(10), ValueError, "needs epochs or steps"),
    ("two works", lambda: local.Work(10, epochs=1, steps=1), ValueError, "one of the two"),
    ("batch 0", lambda: local.Work(0, epochs=1), ValueError, "batch_size=0"),
    # data
    (
        "an empty client",
        lambda: federate(source(), [np.arange(40), np.arange(0)]),
        ValueError,
        "client 1 of 2 has no row",
    ),
    (
        "overlap",
        lambda: federate(source(), [np.arange(20), np.arange(19, 40)]),
        ValueError,
        "row 19 to clients [0, 1]",
    ),
    ("no test", lambda: data(personal_fraction=1.0), ValueError, "personal_fraction=1.0 is not"),
    (
        "concentration",
        lambda: partition.dirichlet([0, 1], 1, concentration=0, seed=0),
        ValueError,
        "concentration=0 is no",
    ),
    ("clients", lambda: partition.iid(3, 4, seed=0), ValueError, "4 clients cannot have 1 of 3"),
    ("npz", lambda: npz(train_image=[1]), ValueError, "has no arrays ['test_image', 'test_label'"),
    ("no npz", lambda: sources.npz("no.npz"), FileNotFoundError, "no.npz"),
    ("tfds", unprepared, ValueError, "tfds build mnist"),
    ("std", lambda: images.normalise([0.5], [0.0]), ValueError, "std above 0"),
    # the command line
    ("command", lambda: command("train"), ValueError, "no command 'train'; there are run, resume"),
    ("no config", lambda: command("run"), ValueError, "give a config: jaxfed run CONFIG"),
    ("where", lambda: command("run", "no.py"), FileNotFoundError, "there is no config no.py"),
    ("setting", lambda: small("--cohrt", 3), ValueError, "did you mean --cohort? there are"),
    ("=setting", lambda: small("--cohrt=3"), ValueError, "no option --cohrt; did you mean"),
    ("type", lambda: small("--rank", 1.5), ValueError, "--rank wants int, not '1.5'"),
    ("=type", lambda: small("--rank=many"), ValueError, "--rank wants int, not 'many'"),
    ("choice", lambda: small("--method", "fedsgd"), ValueError, "'fedsgd'"),
    ("no value", lambda: small("--rank"), ValueError, "--rank wants int, not ''"),
    ("stray word", lambda: small("now"), ValueError, "cannot read 'now'"),
    ("rank of a run", lambda: small("--rank", 64), ValueError, "lower the rank"),
    ("cpu devices", lambda: small("--cpu-devices", 0), ValueError, "cpu_devices=0; use 1 to 1024"),
    ("=cpu devices", lambda: small("--cpu-devices=two"), ValueError, "cpu-devices"),
    ("alone", lambda: small("--coordinator", "h:1"), ValueError, "needs --processes and --process"),
    ("which", lambda: small("--process", 1), ValueError, "need --coordinator"),
    (
        "process 2 of 2",
        lambda: small("--coordinator", "h:1", "--processes", 2, "--process", 2),
        ValueError,
        "process=2 of 2; use 0 to 1",
    ),
    ("chunk none", lambda: small("--chunk", "none"), ValueError, "--chunk wants"),
    ("devices of a run", lambda: small("--devices", 99), ValueError, "devices=99, but JAX sees"),
    # configs
    ("syntax", lambda: config("def experiment(:\n"), SyntaxError, "invalid syntax"),
    ("empty config", lambda: config(""), ValueError, "no function `experiment`"),
    ("no .py", lambda: command("run", written("mine.txt", "")), ValueError, "a config ends in .py"),
    (
        "no default",
        lambda: config("def experiment(rank: int): ...\n"),
        ValueError,
        "the setting rank needs a type and a default",
    ),
    (
        "no type",
        lambda: config("def experiment(rank=3): ...\n"),
        ValueError,
        "the setting rank needs a type and a default",
    ),
    (
        "taken name",
        lambda: config("def experiment(chunk: int = 3): ...\n"),
        ValueError,
        "options of jaxfed; rename them",
    ),
    (
        "no experiment",
        lambda: config("def experiment(rank: int = 3): ...\n"),
        TypeError,
        "returned a NoneType; return an Experiment",
    ),
    # resume and report
    ("resume what", lambda: command("resume"), ValueError, "give the folder of the run"),
    ("resume none", lambda: command("resume", "x"), FileNotFoundError, "x has no settings.json"),
    ("from Python", lambda: command("resume", begun()), FileNotFoundError, "begun from Python"),
    ("truncated", damaged_settings, ValueError, "settings.json is damaged"),
    ("report what", lambda: command("report"), ValueError, "give the folders of runs"),
    ("report none", lambda: command("report", "x"), ValueError, "x is no run's folder"),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_is_refused_before_a_round_is_run(
    call, error, sentence, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXFED_TRACEBACK", "1")
    with pytest.raises(error, match=re.escape(sentence)) as raised:
        call()
    assert raised.type in (error, FileExistsError, FileNotFoundError)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not list(tmp_path.rglob("host.json"))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: small("--rank=many"), "small.py: --rank wants int, not 'many'\n"),
        (lambda: small("--rank=64"), "small.py, line 40)\n"),
        (lambda: config("1 +\n"), "jaxfed: mine.py, line 1: invalid syntax: 1 +\n"),
        (lambda: config("import no_such\n"), "No module named 'no_such' (mine.py, line 1)\n"),
        (
            lambda: config("from jaxfed import local\n\nlocal.Work(3, epoch=1)\n"),
            "(mine.py, line 3)\n",
        ),
        (
            lambda: config("def experiment(n: int = 3):\n    return int('x')\n"),
            "invalid literal for int() with base 10: 'x' (mine.py, line 2)\n",
        ),
        (lambda: command("resume", "x"), "jaxfed: x has no settings.json"),
    ],
    ids=["type", "in the config", "syntax", "import", "argument", "literal", "resume"],
)
def test_the_command_line_refuses_in_one_sentence(call, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def test_an_error_that_is_not_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NameError):
        config("def experiment(rank: int = 3):\n    return lowrank\n")
