"""Wrong command lines, configs and folders end in one sentence before a round is run."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import refusals
from refusals import SMALL, command, written

pytestmark = pytest.mark.quick

small = partial(command, "run", SMALL)
describe = partial(command, "describe", SMALL)


def config(body, *arguments):
    command("run", written("mine.py", body), *arguments)


def returning(text, setting="n: int = 3"):
    return config(f"def experiment({setting}):\n    return {text}\n")


def begun(settings=None, **changes):
    """A folder that looks like a run's, and holds no checkpoint; also of raw `settings`."""
    content = {
        "arguments": [],
        "settings": {},
        "launch": {},
        "experiment": {"rounds": 2, "cohort": 2},
    } | changes
    written("begun/settings.json", json.dumps(content) if settings is None else settings)
    return "begun"


def started(settings=None, **changes):
    """`begun` with a config."""
    written("begun/config.py", SMALL.read_text())
    return begun(settings, **changes)


def recorded(line):
    started()
    written("begun/metrics.jsonl", line + "\n")
    return "begun"


def binary(name):
    Path(name).write_bytes(b"\xff\xfe\x00")
    return name


CASES = [
    # commands
    ("command", lambda: command("train"), ValueError, "no command 'train'; there are run,"),
    ("command empty", lambda: command(""), ValueError, "no command ''; there are run, sweep,"),
    ("command in capitals", lambda: command("RUN", SMALL), ValueError, "no command 'RUN'; there"),
    ("option first", lambda: command("--rank", 3), ValueError, "no command '--rank'; there are"),
    ("config first", lambda: command(SMALL), ValueError, "there are run, sweep, resume, report,"),
    # a config's path
    ("no config", lambda: command("run"), ValueError, "give a config: jaxfed run CONFIG [--name"),
    ("no config to describe", lambda: command("describe"), ValueError, "give a config: jaxfed"),
    (
        "an option as config",
        lambda: command("run", "--rank", 3),
        ValueError,
        "give a config: jaxfed run CONFIG [--name value ...]",
    ),
    ("where", lambda: command("run", "no.py"), FileNotFoundError, "there is no config no.py"),
    ("a folder as config", lambda: command("run", "."), FileNotFoundError, "there is no config ."),
    ("config empty", lambda: command("run", ""), ValueError, "the path after the command is"),
    (
        "no .py",
        lambda: command("run", written("mine.txt", "")),
        ValueError,
        "mine.txt is no Python file; a config ends in .py",
    ),
    (
        "config in bytes",
        lambda: command("run", binary("mine.py")),
        ValueError,
        "mine.py is not UTF-8 ('utf-8' codec can't decode byte 0xff in position 0:",
    ),
    # options
    ("setting", lambda: small("--cohrt", 3), ValueError, "has no option --cohrt; did you mean"),
    ("=setting", lambda: small("--cohrt=3"), ValueError, "has no option --cohrt; did you mean"),
    ("setting to describe", lambda: describe("--cohrt", 3), ValueError, "has no option --cohrt;"),
    ("type", lambda: small("--rank", 1.5), ValueError, "--rank wants int, not '1.5'"),
    ("=type", lambda: small("--rank=many"), ValueError, "--rank wants int, not 'many'"),
    ("nan", lambda: small("--rank", "nan"), ValueError, "--rank wants int, not 'nan'"),
    ("None", lambda: small("--rank", "None"), ValueError, "--rank wants int, not 'None'"),
    ("True", lambda: small("--rank", "True"), ValueError, "--rank wants int, not 'True'"),
    ("rate", lambda: small("--learning-rate", "fast"), ValueError, "--learning-rate wants float,"),
    ("choice", lambda: small("--method", "fedsgd"), ValueError, "scaffold or fedloru, not"),
    ("choice empty", lambda: small("--method="), ValueError, "--method wants"),
    ("no value", lambda: small("--rank"), ValueError, "--rank wants int, not ''"),
    ("two values", lambda: small("--rank", 1, 2), ValueError, "--rank wants int, not '1 2'"),
    ("stray word", lambda: small("now"), ValueError, "cannot read 'now'; see --help"),
    ("a single dash", lambda: small("-rank", 3), ValueError, "cannot read '-rank 3'; see --help"),
    ("two configs", lambda: small(SMALL), ValueError, "cannot read"),
    ("out empty", lambda: small("--out", ""), ValueError, "the path after '--out' is empty"),
    ("out without value", lambda: small("--out"), ValueError, "--out wants Path or None, not ''"),
    ("chunk none", lambda: small("--chunk", "none"), ValueError, "--chunk wants int or auto,"),
    ("chunk 0", lambda: small("--chunk", 0), ValueError, "chunk=0; use at least 1"),
    ("fuse half", lambda: small("--fuse", 1.5), ValueError, "--fuse wants int or auto, not '1.5'"),
    ("devices 99", lambda: small("--devices", 99), ValueError, "devices=99, but JAX sees"),
    ("devices 0", lambda: small("--devices", 0), ValueError, "devices=0; use at least 1"),
    (
        "checkpoint -1",
        lambda: small("--checkpoint-every", -1),
        ValueError,
        "checkpoint_every=-1; use at least 0",
    ),
    ("nonfinite", lambda: small("--nonfinite", "ignore"), ValueError, "wants stop or skip, not"),
    ("population", lambda: small("--population", "disk"), ValueError, "--population wants"),
    (
        "stream",
        lambda: small("--stream", "perhaps"),
        ValueError,
        "--stream wants bool or None, not 'perhaps'",
    ),
    ("cpu devices 0", lambda: small("--cpu-devices", 0), ValueError, "cpu_devices=0; use 1 to"),
    ("cpu devices text", lambda: small("--cpu-devices=two"), ValueError, "argument"),
    (
        "cpu devices many",
        lambda: small("--cpu-devices", 100000),
        ValueError,
        "cpu_devices=100000; use 1 to 1024",
    ),
    ("alone", lambda: small("--coordinator", "h:1"), ValueError, "--coordinator also needs"),
    ("which", lambda: small("--process", 1), ValueError, "--processes and --process need"),
    (
        "process 2 of 2",
        lambda: small("--coordinator", "h:1", "--processes", 2, "--process", 2),
        ValueError,
        "process=2 of 2; use 0 to 1",
    ),
    (
        "coordinator without port",
        lambda: small("--coordinator", "h", "--processes", 2, "--process", 0),
        ValueError,
        "--coordinator is 'h'; give host:port",
    ),
    (
        "processes text",
        lambda: small("--coordinator", "h:1", "--processes", "two", "--process", 0),
        ValueError,
        "argument --processes: invalid int value: 'two'",
    ),
    # values that the experiment refuses
    ("rank of a run", lambda: small("--rank", 64), ValueError, "rank above the layer's smaller"),
    ("rank 0", lambda: small("--rank", 0), ValueError, "a rank must be at least 1; got 0"),
    ("rounds 0", lambda: small("--rounds", 0), ValueError, "rounds=0; use at least 1"),
    ("cohort of a run", lambda: small("--cohort", 21), ValueError, "cohort=21 clients a round"),
    ("rate -1", lambda: small("--learning-rate", -1), ValueError, "learning_rate=-1.0; use a"),
    ("rate of inf", lambda: small("--learning-rate", "inf"), ValueError, "learning_rate=inf; use"),
    ("seed -1", lambda: small("--seed", -1), ValueError, "seed=-1; use at least 0"),
    ("seed too large", lambda: small("--seed", 2**32), ValueError, "seed=4294967296; use a"),
    (
        "out a file",
        lambda: small("--out", written("f", "")),
        FileExistsError,
        "f is a file; choose another folder for the run",
    ),
    ("out a run", lambda: small("--out", begun()), FileExistsError, "begun holds a run already;"),
    # configs
    ("syntax", lambda: config("def experiment(:\n"), SyntaxError, "mine.py, line 1: invalid"),
    (
        "indentation",
        lambda: config("def experiment():\nreturn 3\n"),
        IndentationError,
        "mine.py, line 2: expected an indented block after function definition on line",
    ),
    ("null byte", lambda: config("x = 1\0\n"), (ValueError, SyntaxError), "null bytes"),
    ("empty config", lambda: config(""), ValueError, "mine.py has no function `experiment`; see"),
    (
        "experiment no function",
        lambda: config("experiment = 3\n"),
        ValueError,
        "mine.py has no function `experiment`; see configs/quickstart.py",
    ),
    (
        "no default",
        lambda: config("def experiment(rank: int): ...\n"),
        ValueError,
        "mine.py: the setting rank needs a type and a default",
    ),
    (
        "no type",
        lambda: config("def experiment(rank=3): ...\n"),
        ValueError,
        "mine.py: the setting rank needs a type and a default",
    ),
    (
        "rest of arguments",
        lambda: config("def experiment(*rest): ...\n"),
        ValueError,
        "mine.py: the setting rest needs a type and a default",
    ),
    (
        "rest of settings",
        lambda: config("def experiment(**rest): ...\n"),
        ValueError,
        "mine.py: the setting rest needs a type and a default",
    ),
    (
        "positional only",
        lambda: config("def experiment(n: int = 3, /):\n    return n\n"),
        ValueError,
        "mine.py: the setting n must have a name; leave out the slash",
    ),
    (
        "unknown type",
        lambda: config("def experiment(n: 'Rank' = 3): ...\n"),
        ValueError,
        "mine.py: name 'Rank' is not defined, in the types of the settings; import it",
    ),
    (
        "a type that no word gives",
        lambda: config("import jax\n\ndef experiment(n: jax.Array = None): ...\n"),
        TypeError,
        "mine.py: experiment() returned a NoneType; return an Experiment",
    ),
    (
        "default of another type",
        lambda: config("def experiment(n: int = 'x'): ...\n"),
        TypeError,
        "mine.py: experiment() returned a NoneType; return an Experiment",
    ),
    (
        "taken name",
        lambda: config("def experiment(chunk: int = 3): ...\n"),
        ValueError,
        "mine.py: the settings ['chunk'] are options of jaxfed; rename them",
    ),
    (
        "taken name help",
        lambda: config("def experiment(help: int = 3): ...\n"),
        TypeError,
        "mine.py: experiment() returned a NoneType; return an Experiment",
    ),
    ("returns None", lambda: returning("None"), TypeError, "mine.py: experiment() returned a"),
    (
        "returns a class",
        lambda: returning("__import__('jaxfed').Experiment"),
        TypeError,
        "mine.py: experiment() returned a type; return an Experiment",
    ),
    ("returns a pair", lambda: returning("1, 2"), TypeError, "mine.py: experiment() returned a"),
    ("import", lambda: config("import no_such\n"), ValueError, "No module named 'no_such'"),
    (
        "import of a name",
        lambda: config("from jaxfed.algorithms import fedsgd\n"),
        ValueError,
        "cannot import name 'fedsgd' from 'jaxfed.algorithms'",
    ),
    (
        "missing module",
        lambda: config("from jaxfed.no_such import x\n"),
        ValueError,
        "No module named 'jaxfed.no_such' (mine.py, line 1)",
    ),
    (
        "argument",
        lambda: config("from jaxfed import local\n\nlocal.Work(3, epoch=1)\n"),
        ValueError,
        "Work.__init__() got an unexpected keyword argument 'epoch'",
    ),
    ("literal", lambda: returning("int('x')"), ValueError, "invalid literal for int() with base"),
    (
        "raises",
        lambda: config("raise ValueError('no data here')\n"),
        ValueError,
        "no data here (mine.py, line 1)",
    ),
    (
        "missing file",
        lambda: config("open('no.csv')\n"),
        FileNotFoundError,
        "[Errno 2] No such file or directory: 'no.csv'",
    ),
    (
        "wrong value",
        lambda: config("from jaxfed import local\n\nlocal.Work(0, epochs=1)\n"),
        ValueError,
        "batch_size=0; use at least 1",
    ),
    # resume
    ("resume what", lambda: command("resume"), ValueError, "give the folder of the run: jaxfed"),
    ("resume none", lambda: command("resume", "x"), FileNotFoundError, "x has no settings.json:"),
    ("resume empty", lambda: command("resume", ""), ValueError, "the path after the command is"),
    (
        "resume a file",
        lambda: command("resume", written("f", "")),
        FileNotFoundError,
        "f has no settings.json: it is no run's folder, or its run was stopped before",
    ),
    (
        "resume a config",
        lambda: command("resume", SMALL),
        FileNotFoundError,
        "has no settings.json: it is no run's folder, or its run was stopped before it",
    ),
    (
        "from Python",
        lambda: command("resume", begun()),
        FileNotFoundError,
        "begun has no config.py: its run was begun from Python; go on with it there,",
    ),
    (
        "resume option",
        lambda: command("resume", started(), "--rank", 3),
        ValueError,
        "jaxfed resume begun has no option --rank; did you mean --low-rank? there are --allow",
    ),
    (
        "resume rounds text",
        lambda: command("resume", started(), "--rounds", "many"),
        ValueError,
        "jaxfed resume begun: --rounds wants int, not 'many'",
    ),
    (
        "truncated",
        lambda: command("resume", started('{"rounds": ')),
        ValueError,
        "begun/settings.json is damaged",
    ),
    ("settings []", lambda: command("resume", started("[]")), ValueError, "begun/settings.json"),
    ("settings {}", lambda: command("resume", started("{}")), ValueError, "begun/settings.json"),
    (
        "settings of bytes",
        lambda: (started(), binary("begun/settings.json"), command("resume", "begun")),
        ValueError,
        "begun/settings.json is damaged",
    ),
    (
        "arguments a dict",
        lambda: command("resume", started(arguments={})),
        ValueError,
        "begun/settings.json is damaged",
    ),
    (
        "arguments of numbers",
        lambda: command("resume", started(arguments=[3])),
        ValueError,
        "begun/settings.json, arguments is damaged",
    ),
    (
        "arguments unknown",
        lambda: command("resume", started(arguments=["--cohrt", "3"])),
        ValueError,
        "jaxfed run begun/config.py has no option --cohrt; did you mean --cohort?",
    ),
    (
        "launch a list",
        lambda: command("resume", started(launch=[])),
        ValueError,
        "begun/settings.json is damaged",
    ),
    (
        "launch of another chunk",
        lambda: command("resume", started(launch={"chunk": 0})),
        ValueError,
        "begun/settings.json is damaged",
    ),
    (
        "rounds null",
        lambda: command("resume", started(experiment={"rounds": None})),
        ValueError,
        "begun/settings.json, experiment is damaged",
    ),
    (
        "config a folder",
        lambda: (Path("begun/config.py").mkdir(parents=True), command("resume", begun())),
        ValueError,
        "begun/config.py is no regular file; put a copy of the run's own back",
    ),
    # report
    ("report what", lambda: command("report"), ValueError, "give the folders of runs: jaxfed"),
    ("report none", lambda: command("report", "x"), ValueError, "x is no run's folder: it has"),
    ("report empty", lambda: command("report", ""), ValueError, "jaxfed report: the path after"),
    (
        "report a file",
        lambda: command("report", written("f", "")),
        ValueError,
        "f is no run's folder: it has neither settings.json nor metrics.jsonl",
    ),
    ("report a folder", lambda: command("report", "."), ValueError, ". is no run's folder: it"),
    (
        "report option",
        lambda: command("report", started(), "--too", "x"),
        ValueError,
        "jaxfed report has no option --too; did you mean --to? there are --accuracy --csv --group",
    ),
    (
        "report to nothing",
        lambda: command("report", started(), "--to", ""),
        ValueError,
        "jaxfed report: the path after '--to' is empty",
    ),
    (
        "report settings",
        lambda: command("report", started("[]")),
        ValueError,
        "begun/settings.json is damaged",
    ),
    (
        "report no JSON",
        lambda: command("report", recorded("{\n{}")),
        ValueError,
        "begun/metrics.jsonl, line 1 is damaged",
    ),
    (
        "report a number",
        lambda: command("report", recorded("3\n{}")),
        ValueError,
        "begun/metrics.jsonl, line 1 is damaged",
    ),
    (
        "report a list",
        lambda: command("report", recorded("[]\n{}")),
        ValueError,
        "begun/metrics.jsonl, line 1 is damaged",
    ),
    (
        "report text for a loss",
        lambda: command("report", recorded('{"round": 1, "loss": "x"}')),
        ValueError,
        "begun/metrics.jsonl, line 1 is damaged",
    ),
    # describe and analyse
    (
        "describe nothing",
        lambda: command("describe", "no.py"),
        FileNotFoundError,
        "there is no config no.py",
    ),
    ("describe rank 64", lambda: describe("--rank", 64), ValueError, "rank above the layer's"),
    ("describe chunk -1", lambda: describe("--chunk", -1), ValueError, "chunk=-1; use at least 1"),
    ("analyse what", lambda: command("analyse"), ValueError, "give the folder of the run: jaxfed"),
    ("analyse none", lambda: command("analyse", "x"), FileNotFoundError, "x has no"),
    (
        "analyse from Python",
        lambda: command("analyse", begun()),
        FileNotFoundError,
        "begun has no config.py: its run was begun from Python; analyse it there, with",
    ),
    (
        "analyse option",
        lambda: command("analyse", started(launch={"cpu_devices": 4}), "--dept", 3),
        ValueError,
        "jaxfed analyse begun has no option --dept; did you mean --depth? there are",
    ),
    (
        "analyse depth text",
        lambda: command("analyse", started(launch={"cpu_devices": 4}), "--depth", "x"),
        ValueError,
        "jaxfed analyse begun: --depth wants int, not 'x'",
    ),
    (
        "analyse ranks text",
        lambda: command("analyse", started(launch={"cpu_devices": 4}), "--ranks", "x"),
        ValueError,
        "jaxfed analyse begun: --ranks wants several int, not 'x'",
    ),
    (
        "analyse part",
        lambda: command("analyse", started(launch={"cpu_devices": 4}), "--part", "all"),
        ValueError,
        "jaxfed analyse begun: --part wants weights or trained or factors, not",
    ),
    (
        "analyse depth 0",
        lambda: command("analyse", started(launch={"cpu_devices": 4}), "--depth", 0),
        ValueError,
        "depth=0; use at least 1",
    ),
    (
        "analyse cpu devices text",
        lambda: command("analyse", started(launch={"cpu_devices": "two"})),
        ValueError,
        "begun/settings.json, launch is damaged",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: small("--rank=many"), "small.py: --rank wants int, not 'many'\n"),
        (lambda: small("--rank=64"), "small.py, line 55)\n"),
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
    *clock, last = printed.err.splitlines(keepends=True)
    assert sentence in last
    assert all(re.match(r" +\d+ s ", line) for line in clock)
    assert "Traceback" not in printed.err


def test_an_error_that_is_not_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NameError):
        config("def experiment(rank: int = 3):\n    return lowrank\n")
