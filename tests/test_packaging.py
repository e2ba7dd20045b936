"""What an installer and a reader are told, against the code."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import launched
import pytest
import tiny_bert
from packaging.specifiers import SpecifierSet

import jaxfed
from jaxfed import pretrained

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


EXTRAS = ("matfree", "safetensors", "tensorboardX", "tokenizers")
WITHOUT = """
import importlib, pkgutil, sys
for name in {names}:
    sys.modules[name] = None  # as if it were not installed
import jaxfed
for module in pkgutil.walk_packages(jaxfed.__path__, "jaxfed."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from jaxfed.cli import main
how = ["--cpu-devices=1", "--chunk=5", "--fuse=1"]
main.main(["run", "{config}", "--rounds=1", "--out={folder}", *how])
main.main(["resume", "{folder}", "--rounds=2"])
main.main(["report", "{folder}"])
main.main(["zoo", "fedavg"])
main.main(["analyse", "{folder}"])
"""


def test_what_only_an_extra_needs_is_imported_when_it_is_used():
    """At the top of a file such a package stands for types alone."""
    for path in (ROOT / "jaxfed").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                first = getattr(node, "module", None) or node.names[0].name
                assert first.partition(".")[0] not in EXTRAS, path


@pytest.mark.full
def test_a_run_is_made_resumed_and_reported_without_any_extra(tmp_path):
    """Only the analysis of its Hessians ends, in a sentence."""
    folder = tmp_path / "run"
    text = WITHOUT.format(names=EXTRAS, config=launched.SMALL, folder=folder)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "a spectrum needs matfree" in done.stderr
    assert "pip install 'jaxfed[analysis]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r["round"] for r in launched.records(folder)] == [1, 2]
    assert not (folder / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("tokenizers", lambda folder: pretrained.tokenizer(folder)),
        ("safetensors", lambda folder: pretrained.read(folder)),
    ],
)
def test_a_missing_extra_is_a_sentence_with_its_command(name, use, tmp_path, monkeypatch):
    folder = tiny_bert.write(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name} .*: pip install 'jaxfed\[text\]'"):
        use(folder)


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
