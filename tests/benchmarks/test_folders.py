"""Scripts run from their own folders, and tests import them all."""

import ast
import pathlib
from collections import Counter

import pytest

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parents[2] / "benchmarks"
FILES = sorted(ROOT.rglob("*.py"))
DOORS = {"measuring", "kept"}  # to benchmarks/speed


def imported(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_no_two_modules_on_the_path_of_tests_have_one_name():
    support = (ROOT.parent / "tests" / "support").glob("*.py")
    assert [n for n, k in Counter(p.stem for p in [*FILES, *support]).items() if k > 1] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_script_imports_from_its_own_folder(path):
    """So that it runs from anywhere; only the doors reach into benchmarks/speed."""
    folders = {p.stem: p.parent.name for p in FILES}
    allowed = {path.parent.name} | ({"speed"} if path.stem in DOORS else set())
    assert {folders[name] for name in imported(path) if name in folders} <= allowed
