"""The table of methods."""

import ast
import re
from functools import cache
from pathlib import Path

import pages
import pytest

from jaxfed.algorithms import zoo

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent.parent


@cache
def truths(file):
    """The names of a file's tests."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", zoo.TABLE, ids=lambda row: row.name)
def test_the_oracle_of_a_row_is_a_test_that_exists(row):
    assert row.oracle.test.startswith("test_")
    assert row.oracle.test in truths(row.oracle.file)


def test_the_methods_that_the_readme_names_are_rows():
    """FedEx-LoRA is the row fedex; FedDPA has several."""
    readme = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("## Methods")[2].partition("\n## ")[0]
    words = {w for w in re.findall(r"\w[\w-]+\w", listed) if sum(map(str.isupper, w)) > 1}
    rows = [row.name.replace("-", "") for row in zoo.ROWS]
    short = {w: w.lower().removesuffix("-lora").replace("-", "") for w in words}
    assert len(words) > 30
    assert [w for w, name in short.items() if not any(name in row for row in rows)] == []
