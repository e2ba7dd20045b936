"""The table of methods."""

import ast
from functools import cache
from pathlib import Path

import pytest

from jaxfed.algorithms import zoo

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent.parent


@cache
def truths(file):
    """The names of a file's tests."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: row.name)
def test_the_oracle_of_a_row_is_a_test_that_exists(row):
    assert row.oracle.test.startswith("test_")
    assert row.oracle.test in truths(row.oracle.file)
