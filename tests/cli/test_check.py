"""`jaxfed check` and `jaxfed zoo`: what they print, their exit status, and wrong input."""

import jax
import pytest
from refusals import check as refused
from refusals import command, written

from jaxfed.algorithms import zoo
from jaxfed.analysis.certify import certificate
from jaxfed.analysis.certify.certificate import Certificate
from jaxfed.analysis.certify.line import Line
from jaxfed.cli import check

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def devices_of_the_tests(monkeypatch):
    """JAX's devices cannot be changed in a process that has used them."""
    monkeypatch.setattr(check, "DEVICES", jax.device_count())


MINE = """
import numpy as np
from jaxfed.algorithms import fedavg

RATE = 0.1

def mine(task, work):
    return fedavg(task, work, client_optimizer=None)

def raising(task, work):
    return {}["rate"]
"""


@pytest.mark.parametrize("holds", [True, False])
def test_the_exit_status_says_whether_the_contract_holds(holds, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = Certificate("mine", (Line("order of clients", holds, "difference 1", "why"),))
    monkeypatch.setattr(certificate, "check", lambda function: found)
    written("mine.py", MINE)
    if holds:
        command("check", "mine.py:mine")
    else:
        with pytest.raises(SystemExit) as ended:
            command("check", "mine.py:mine")
        assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert ("the contract holds" in printed) == holds


def test_the_table_of_the_zoo_has_every_row(capsys):
    command("zoo")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *(row.name for row in zoo.TABLE)]


@pytest.mark.parametrize("row", zoo.TABLE, ids=lambda row: row.name)
def test_a_row_of_the_zoo_is_shown_with_its_paper(row, capsys):
    command("zoo", row.name)
    printed = capsys.readouterr().out
    assert row.source in printed
    assert f".{row.function.__name__}(task" in printed
    assert len(printed.splitlines()) > 12


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("fedavg-ef21", "Richtarik et al. 2021, Algorithm 2"),
        ("krum", "Blanchard et al., NeurIPS 2017"),
        ("fedpara", "HADAMARD   W + (A_1 B_1) o (A_2 B_2)"),
        ("rac", "FedLoRU's merge"),
        ("flasc", "jaxfed.combine.sparse"),
    ],
)
def test_a_row_is_shown_with_what_stands_around_its_function(row, words, capsys):
    command("zoo", row)
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("name", ["check", "zoo"])
def test_help_shows_how_both_are_called(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command(name, "--help")
    assert not ended.value.code
    assert f"jaxfed {name} NAME" in capsys.readouterr().out


CASES = {
    "nothing": ((), ValueError, "give one algorithm: jaxfed check NAME"),
    "two": (("a", "b"), ValueError, "give one algorithm"),
    "no row": (("fedavgg",), ValueError, "the zoo has no row 'fedavgg'; did you mean fedavg?"),
    "no file": (("other.py:mine",), OSError, "there is no file other.py"),
    "no Python": (("mine:mine",), ValueError, "'mine:mine' names no Python file"),
    "no function": (("mine.py:yours",), ValueError, "has no function 'yours'; it has mine, rais"),
    "a number": (("mine.py:RATE",), ValueError, "mine.py has no function 'RATE'"),
    "inside": (
        ("mine.py:mine",),
        ValueError,
        "TypeError: client_optimizer is a NoneType; give one of optax",
    ),
    "raising": (("mine.py:raising",), ValueError, "raising cannot run on the check's task"),
    "syntax": (("syntax.py:f",), SyntaxError, "syntax.py, line 1"),
    "import": (("import.py:f",), ValueError, "No module named 'jaxfedd'"),
    "executed": (("broken.py:f",), ValueError, "broken.py cannot be executed: ZeroDivisionError"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_file_or_function_ends_in_one_sentence(case, tmp_path, monkeypatch):
    arguments, error, sentence = CASES[case]
    monkeypatch.chdir(tmp_path)
    written("mine.py", MINE)
    written("syntax.py", "def f(:\n")
    written("import.py", "import jaxfedd\n")
    written("broken.py", "1 / 0\n")
    refused(lambda: command("check", *arguments), error, sentence, tmp_path, monkeypatch)


def test_a_wrong_row_of_the_zoo_ends_in_one_sentence(tmp_path, monkeypatch):
    refused(
        lambda: command("zoo", "x"), ValueError, "the zoo has no row 'x'", tmp_path, monkeypatch
    )
