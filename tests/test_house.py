"""Who may know whom: the table of the house, held against the imports as they are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxfed"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}

# {module or package: the modules of ours that it may import}. A package stands for all in it.
MAY_IMPORT = {
    "__init__": {"algorithm", "aggregate", "algorithms", "analysis", "combine", "data", "hypergrad",
                 "local", "lowrank", "models", "pretrained", "run", "task", "experiment"},
    "aggregate": {"algorithm"},
    "algorithm": set(),
    "analyse": {"algorithm", "analysis", "checkpoint", "engine", "experiment", "findings",
                "folder", "lowrank", "population"},
    "analysis": {"algorithm", "analysis", "hypergrad", "local", "lowrank", "report"},
    "algorithms": {"algorithm", "aggregate", "combine", "hypergrad", "local", "lowrank", "task"},
    "checkpoint": {"algorithm"},
    "cli": {"analyse", "describe", "experiment", "findings", "folder", "launching", "ledger",
            "options", "report", "run"},
    "combine": {"algorithm", "aggregate", "lowrank"},
    "data": {"data"},
    "describe": {"data", "flops", "ledger", "lowrank"},
    "engine": {"algorithm"},
    "evaluate": {"algorithm", "data", "local", "task"},
    "experiment": {"algorithm", "data", "ledger", "task"},
    "findings": {"analysis", "report"},
    "flops": {"algorithm"},
    "folder": set(),
    "hypergrad": {"algorithm"},
    "launching": {"experiment", "options"},
    "ledger": {"algorithm"},
    "local": {"algorithm"},
    "lowrank": {"algorithm"},
    "models": {"models"},
    "options": set(),
    "plans": {"algorithm", "data", "engine", "experiment"},
    "population": {"algorithm", "engine", "folder"},
    "pretrained": {"algorithm", "lowrank", "models"},
    "records": {"engine", "ledger"},
    "report": set(),
    "run": {"algorithm", "checkpoint", "combine", "data", "engine", "experiment", "flops", "folder",
            "ledger", "plans", "population", "records", "scores"},
    "scores": {"algorithm", "data", "engine", "evaluate", "experiment"},
    "task": {"algorithm", "lowrank"},
}  # fmt: skip

# FedLoRU is FedAvg with a combinator around it; FedProx is FedAvg with another client optimizer;
# FedSGD is FedAvg with one step. What clients keep is averaged around in `personal`.
BUILT_ON = {
    "algorithms.centralised": {"algorithms.fedavg"},
    "algorithms.ditto": {"algorithms.personal"},
    "algorithms.fdlora": {"algorithms.personal"},
    "algorithms.feddpa": {"algorithms.personal"},
    "algorithms.fedloru": {"algorithms.fedavg"},
    "algorithms.fedper": {"algorithms.personal"},
    "algorithms.fedprox": {"algorithms.fedavg"},
    "algorithms.fedsa": {"algorithms.fedper"},
    "algorithms.hetlora": {"algorithms.personal"},
    "algorithms.mfedloru": {"algorithms.personal"},
    "algorithms.perfedavg": {"algorithms.personal"},
    "algorithms.pfedlora": {"algorithms.personal"},
    "algorithms.pfedloru": {"algorithms.personal"},
}

# {what: the modules or packages that may import it}, for packages that are not ours.
ONLY_IN = {
    "flax": {"models", "lowrank"},
    "optax": {"aggregate", "algorithms", "combine", "hypergrad", "local", "task"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "tokenizers": {"data", "pretrained"},
    "sklearn": {"data"},
    "matfree": {"analysis"},
    "matplotlib": {"analysis", "report"},
    "tensorboardX": {"folder"},
    "safetensors": {"pretrained"},
    "tqdm": {"cli"},
    "tyro": {"cli", "options"},
}

DEVICES = re.compile(r"\b(pmap|shard_map|psum|devices)\(")


def package(module):
    return module.split(".", maxsplit=1)[0]


def imports(path):
    """(modules of ours, other packages) that a file imports, wherever in it."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found = below if node.module == "jaxfed" else [node.module]
        else:
            continue
        ours |= {name.removeprefix("jaxfed.") for name in found if package(name) == "jaxfed"}
        others |= {package(name) for name in found if package(name) != "jaxfed"}
    return ours, others


def code(path):
    """The file without its docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_whom_it_may_know(module):
    ours, _ = imports(MODULES[module])
    allowed = MAY_IMPORT[package(module)]
    if module.endswith(".__init__"):
        allowed = allowed | {package(module)}
    strangers = {name for name in ours if package(name) not in allowed}
    assert strangers <= BUILT_ON.get(module, set())


def test_the_table_lists_the_house_as_it_is():
    assert set(MAY_IMPORT) == {package(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_is_imported_only_where_it_belongs(module):
    _, others = imports(MODULES[module])
    assert not [p for p in others & set(ONLY_IN) if package(module) not in ONLY_IN[p]]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"engine", "population"}))
def test_only_the_engine_speaks_of_devices(module):
    assert DEVICES.findall(code(MODULES[module])) == []


def test_the_engine_does_speak_of_devices():
    """So that the search above finds what it looks for."""
    assert set(DEVICES.findall(code(MODULES["engine"]))) >= {"pmap", "shard_map", "devices"}


@pytest.mark.parametrize("module", [m for m in MODULES if package(m) == "algorithms"])
def test_an_algorithm_is_one_short_file(module):
    """Under 80 lines of code."""
    lines = MODULES[module].read_text().splitlines()
    assert sum(1 for line in lines if line.strip()) < 110
    assert len(code(MODULES[module]).splitlines()) < 80


def test_public_names_are_listed_without_code():
    tree = ast.parse(MODULES["__init__"].read_text())
    assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in tree.body)
