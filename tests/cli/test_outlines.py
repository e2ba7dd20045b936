"""A config's settings are the same with and without a run of its code."""

import inspect
from pathlib import Path

import pytest
from pages import ROOT

from jaxfed.cli import options, outlines

pytestmark = pytest.mark.quick

CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_outline_has_the_settings_and_texts_of_the_config(path):
    text = path.read_text(encoding="utf-8")
    read, run = outlines.outline(path, text), options.load(path, text)
    assert inspect.getdoc(read) == inspect.getdoc(run)
    assert inspect.getdoc(read.experiment) == inspect.getdoc(run.experiment)
    signatures = [options.settings(one.experiment, "", ()) for one in (read, run)]
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize(
    "before",
    [
        "from beside import RATE",
        "from beside import *\nRATE = 1",
        "RATE = 1\nfrom beside import RATE",
        "RATE = 1\nif RATE:\n    RATE = 2",
        "RATE = len(os.environ)",
        "RATE = [1]\nRATE.append(2)",
        "RATE = 1\ndef RATE(): return 2",
        "RATE = (",
    ],
)
def test_what_may_differ_when_it_is_run_has_no_outline(before):
    text = f"{before}\ndef experiment(rate: int = RATE): return rate"
    assert outlines.outline(Path("mine.py"), text) is None


def test_constants_and_types_that_a_config_defines_are_known():
    text = """
from typing import Literal
from jaxfed import run
One = Literal["a", "b"]
LOW, HIGH = 1, 2
class Own: pass
def experiment(x: One = "b", y: "int | None" = HIGH) -> Own: return run()
if __name__ == "__main__":
    run(experiment())
"""
    made = outlines.outline(Path("mine.py"), text)
    assert [default for _, default in options.settings(made.experiment, "", ()).values()] == [
        "b",
        2,
    ]
    assert made.experiment() is None
