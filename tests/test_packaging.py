"""What an installer and a reader are told, against the code."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from packaging.specifiers import SpecifierSet

import jaxfed

ROOT = Path(__file__).parent.parent
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONTENT["project"]
NAMED = ("jax", "flax", "optax", "orbax-checkpoint", "chex", "tensorflow-datasets")

pytestmark = pytest.mark.quick


def names(requirements):
    return {re.match(r"[\w.-]+", r)[0] for r in requirements}


def test_the_version_is_one():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in cited
    assert f"\n## {PROJECT['version']}" in changes
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxfed.__version__)


def test_this_python_and_jax_are_in_the_stated_range():
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Programming Language :: Python :: {minor}" in PROJECT["classifiers"]
    assert minor in SpecifierSet(PROJECT["requires-python"])
    (jax_range,) = (r.removeprefix("jax") for r in PROJECT["dependencies"] if r.startswith("jax"))
    assert jax.__version__ in SpecifierSet(jax_range)


def test_the_named_packages_are_dependencies_and_imported():
    assert set(NAMED) <= names(PROJECT["dependencies"])
    files = [p for f in ("jaxfed", "tests") for p in (ROOT / f).rglob("*.py")]
    text = "".join(p.read_text(encoding="utf-8") for p in files)
    for name in NAMED:
        module = {"orbax-checkpoint": "orbax"}.get(name, name.replace("-", "_"))
        assert re.search(rf"^\s*(import|from) {module}\b", text, re.M), name


def test_tests_need_no_package_that_only_comparisons_need():
    extras = PROJECT["optional-dependencies"]
    assert names(extras["dev"]) == {"jaxfed", "torch", "transformers", "peft"}
    assert not names(extras["test"]) & {"torch", "transformers", "peft"}
    assert "-e '.[test]'" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_types_are_shipped():
    assert (Path(jaxfed.__file__).parent / "py.typed").is_file()


def test_what_tests_import_beside_packages_has_names_of_its_own():
    """Two files of one name would hide each other, and one named as a package hides that."""
    folders = CONTENT["tool"]["pytest"]["ini_options"]["pythonpath"]
    mine = [p.stem for folder in folders for p in (ROOT / folder).glob("*.py")]
    assert len(set(mine)) == len(mine)
    assert not set(mine) & (
        set(importlib.metadata.packages_distributions()) | sys.stdlib_module_names
    )
