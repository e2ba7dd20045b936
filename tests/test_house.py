"""The rules of the house, held against the code as it is. docs/house.md shows the table."""

import ast
import importlib
import re
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent / "jaxfed"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# {room: the rooms that it may import}. A room is a module or package of the top floor; of those
# packages that have doors inside, a part.
MAY_IMPORT = {
    "__init__": {"aggregate", "algorithm", "algorithms", "combine", "data", "hypergrad", "local",
                 "lowrank", "models", "pretrained", "analysis.certify", "cli.frames",
                 "cli.loading", "cli.notebook", "simulation.experiment", "simulation.host",
                 "simulation.run", "simulation.stopping", "tasks"},
    "algorithm": set(),
    "values": set(),
    "aggregate": {"algorithm", "values"},
    "hypergrad": {"algorithm", "values"},
    "local": {"algorithm", "trees", "values"},
    "trees": {"algorithm"},
    "lowrank": {"algorithm", "trees", "values", "lowrank.fused", "lowrank.products"},
    "lowrank.fused": {"lowrank.kernel"},
    "lowrank.kernel": set(),
    "lowrank.products": set(),
    "models": {"values", "models.conv"},
    "models.conv": {"lowrank.products"},
    "tasks": {"algorithm", "lowrank", "trees", "values"},
    "templates": {"algorithm", "local", "lowrank", "tasks", "values"},
    "combine": {"aggregate", "algorithm", "local", "lowrank", "tasks", "trees", "values"},
    "algorithms": {"aggregate", "algorithm", "algorithms.general", "algorithms.personal",
                   "algorithms.shared", "combine", "local", "lowrank", "tasks"},
    "algorithms.general": {"aggregate", "algorithm", "hypergrad", "local", "tasks", "templates",
                           "trees", "values"},
    "algorithms.shared": {"aggregate", "algorithm", "algorithms.general", "combine", "local",
                          "lowrank", "tasks", "templates", "trees", "values"},
    "algorithms.personal": {"aggregate", "algorithm", "algorithms.general", "combine", "hypergrad",
                            "local", "lowrank", "tasks", "templates", "trees"},
    "data.memory": set(),
    "data": {"values", "data.memory"},
    "pretrained": {"algorithm", "lowrank", "models", "trees", "values"},
    "simulation": set(),
    "simulation.stored": set(),
    "simulation.by_client": {"simulation.stored"},
    "simulation.run_folder": {"simulation.by_client", "simulation.stored"},
    "simulation.boards": {"simulation.run_folder", "simulation.stored"},
    "simulation.checkpoint": {"algorithm"},
    "simulation.account": {"algorithm", "trees"},
    "simulation.engine": {"algorithm", "data.memory", "simulation.account"},
    "simulation.loop": {"algorithm", "simulation.account", "simulation.engine", "trees"},
    "simulation.flops": {"algorithm"},
    "simulation.ledger": {"algorithm", "trees"},
    "simulation.tuning": {"simulation.engine", "simulation.hlo", "trees"},
    "simulation.hlo": set(),
    "simulation.targets": {"simulation.engine", "simulation.hlo", "simulation.tuning"},
    "simulation.host": {"values"},
    "simulation.shown": set(),
    "simulation.experiment": {"algorithm", "data", "simulation.host", "simulation.shown", "tasks",
                              "values"},
    "simulation.participation": {"algorithm", "data", "simulation.engine",
                                 "simulation.experiment", "simulation.host", "values"},
    "simulation.population": {"algorithm", "data.memory", "simulation.engine",
                              "simulation.stored", "trees"},
    "simulation.records": {"algorithm", "simulation.engine", "trees"},
    "simulation.programs": {"algorithm", "data", "simulation.engine"},
    "simulation.evaluate": {"algorithm", "data", "local", "simulation.engine",
                            "simulation.experiment", "simulation.measures", "simulation.programs",
                            "tasks"},
    "simulation.measures": {"algorithm", "simulation.records", "values"},
    "simulation.abreast": set(),
    "simulation.lock": {"simulation.stored"},
    "simulation.signals": set(),
    "simulation.processes": set(),
    "simulation.keys": {"algorithm"},
    "simulation.identity": {"algorithm", "data", "simulation.account", "simulation.experiment",
                            "values"},
    "simulation.loaded": {"algorithm", "lowrank", "simulation.by_client", "simulation.checkpoint",
                          "simulation.engine", "simulation.experiment", "simulation.identity",
                          "simulation.keys", "simulation.population", "simulation.run_folder",
                          "simulation.stored", "simulation.shown"},
    "simulation.blocks": {"algorithm", "data", "simulation.engine", "simulation.experiment",
                          "simulation.host", "simulation.participation", "simulation.population",
                          "simulation.programs", "trees"},
    "simulation.compilation": {"algorithm", "lowrank", "models", "simulation.blocks",
                               "simulation.engine", "simulation.experiment", "simulation.host",
                               "simulation.participation", "simulation.programs",
                               "simulation.tuning"},
    "simulation.prepare": {"algorithm", "combine", "data", "simulation.blocks", "simulation.boards",
                           "simulation.checkpoint", "simulation.compilation", "simulation.engine",
                           "simulation.evaluate", "simulation.experiment", "simulation.host",
                           "simulation.identity", "simulation.keys", "simulation.ledger",
                           "simulation.lock", "simulation.population", "simulation.processes",
                           "simulation.programs", "simulation.run_folder", "trees"},
    "simulation.costs": {"simulation.compilation", "simulation.engine", "simulation.flops",
                         "simulation.ledger", "simulation.prepare", "simulation.targets",
                         "simulation.tuning", "trees"},
    "simulation.run": {"values", "simulation.engine", "simulation.experiment", "simulation.host",
                       "simulation.prepare", "simulation.progress", "simulation.signals"},
    "simulation.progress": {"algorithm", "simulation.blocks", "simulation.boards",
                            "simulation.by_client", "simulation.ledger", "simulation.prepare",
                            "simulation.records", "simulation.run_folder", "simulation.stopping",
                            "trees"},
    "simulation.pooling": {"algorithm", "data", "data.memory", "simulation.engine",
                           "simulation.prepare"},
    "simulation.together": {"algorithm", "simulation.abreast", "simulation.engine",
                            "simulation.pooling", "simulation.prepare", "simulation.programs",
                            "simulation.tuning", "trees"},
    "simulation.lockstep": {"algorithm", "simulation.blocks", "simulation.engine",
                            "simulation.prepare", "simulation.progress", "simulation.signals",
                            "simulation.together"},
    "simulation.stopping": {"values", "simulation.engine", "simulation.prepare",
                            "simulation.records", "simulation.run_folder"},
    "analysis.settings": set(),
    "analysis": {"algorithm", "analysis.settings", "combine", "hypergrad", "local", "lowrank",
                 "simulation.engine", "simulation.experiment", "simulation.identity",
                 "simulation.keys", "simulation.loaded", "simulation.run_folder",
                 "simulation.stored", "values", "trees"},
    "analysis.certify": {"algorithm", "algorithms", "combine", "values", "local", "lowrank",
                         "models", "simulation.checkpoint", "simulation.engine", "simulation.keys",
                         "simulation.loop", "tasks", "trees"},
    "cli": set(),
    "cli.options": set(),
    "cli.errors": {"cli.options"},
    "cli.__main__": {"cli.main"},
    "cli.launching": {"cli.options", "data", "simulation.experiment", "simulation.host",
                      "simulation.processes", "simulation.run_folder", "simulation.stored"},
    "cli.asked": {"analysis.settings", "cli.launching", "cli.options"},
    "cli.completion": {"cli.asked"},
    "cli.describe": {"combine", "data", "lowrank", "simulation.flops", "simulation.ledger",
                     "simulation.targets", "trees"},
    "cli.recorded": {"simulation.by_client", "simulation.identity", "simulation.records",
                     "simulation.run_folder", "simulation.stored"},
    "cli.frames": {"cli.recorded", "values", "simulation.by_client",
                   "simulation.run_folder"},
    "cli.studies": {"cli.recorded", "simulation.records"},
    "cli.tables": {"analysis", "cli.recorded", "cli.studies"},
    "cli.plots": {"analysis", "cli.recorded", "cli.studies", "simulation.records",
                  "simulation.stored"},
    "cli.labels": {"cli.plots", "cli.studies"},
    "cli.page": {"cli.labels", "cli.plots", "cli.studies", "cli.tables"},
    "cli.report": {"cli.asked", "cli.options", "cli.page", "cli.plots", "cli.recorded",
                   "cli.studies", "cli.tables", "cli.watching", "values",
                   "simulation.run_folder", "simulation.stored"},
    "cli.notebook": {"analysis", "cli.launching", "cli.plots", "cli.recorded", "cli.studies",
                     "simulation.experiment", "simulation.host", "simulation.run",
                     "simulation.shown"},
    "cli.calling": {"cli.errors", "cli.launching", "cli.options", "cli.watching",
                    "simulation.experiment", "simulation.run_folder", "simulation.stored"},
    "cli.loading": {"cli.calling", "cli.options", "simulation.experiment", "simulation.loaded",
                    "simulation.run_folder"},
    "cli.export": {"cli.asked", "cli.calling", "cli.launching", "cli.loading", "cli.options",
                   "cli.watching", "lowrank", "pretrained", "simulation.loaded",
                   "simulation.stored", "trees"},
    "cli.check": {"algorithms", "analysis.certify", "cli.calling", "cli.errors", "cli.launching",
                  "cli.options", "cli.watching"},
    "cli.zoo": {"algorithms", "analysis", "cli.watching"},
    "cli.watching": {"simulation.lock", "simulation.signals"},
    "cli.following": {"cli.describe", "cli.launching", "cli.plots", "cli.recorded",
                      "cli.studies", "cli.tables", "cli.watching", "simulation.experiment",
                      "simulation.lockstep", "simulation.prepare", "simulation.processes",
                      "simulation.records", "simulation.run", "simulation.run_folder",
                      "simulation.signals", "trees"},
    "cli.rerun": {"cli.asked", "cli.calling", "cli.following", "cli.launching", "cli.options",
                  "cli.watching", "simulation.experiment", "simulation.host",
                  "simulation.identity", "simulation.prepare", "simulation.run_folder",
                  "simulation.stored"},
    "cli.product": {"cli.asked", "cli.calling", "cli.launching", "cli.options"},
    "cli.outlines": {"cli.asked", "cli.launching", "cli.options"},
    "cli.scoring": {"cli.recorded", "simulation.records"},
    "cli.halving": {"cli.product", "cli.recorded", "cli.scoring"},
    "cli.trials": {"cli.calling", "cli.following", "cli.halving", "cli.launching", "cli.options",
                   "cli.product", "cli.recorded", "cli.scoring", "cli.watching", "data",
                   "simulation.abreast", "simulation.engine", "simulation.evaluate",
                   "simulation.host", "simulation.lockstep", "simulation.pooling",
                   "simulation.prepare", "simulation.programs", "simulation.run_folder",
                   "simulation.signals", "simulation.together"},
    "cli.sweep": {"cli.calling", "cli.errors", "cli.halving", "cli.options", "cli.product",
                  "cli.recorded", "cli.scoring", "cli.studies", "cli.tables", "cli.trials",
                  "cli.watching", "simulation.lock", "simulation.run_folder", "simulation.stored"},
    "cli.running": {"cli.asked", "cli.calling", "cli.following", "cli.launching", "cli.options",
                    "cli.watching", "simulation.prepare"},
    "cli.costing": {"cli.calling", "cli.describe", "cli.options", "cli.watching",
                    "simulation.costs", "simulation.prepare", "simulation.targets",
                    "simulation.tuning", "trees"},
    "cli.analysing": {"analysis", "cli.asked", "cli.calling", "cli.launching", "cli.options",
                      "cli.plots", "cli.watching"},
    "cli.main": {"cli.analysing", "cli.asked", "cli.check", "cli.completion", "cli.costing",
                 "cli.errors", "cli.export", "cli.options", "cli.outlines", "cli.report",
                 "cli.rerun", "cli.running", "cli.sweep", "cli.watching", "cli.zoo",
                 "simulation.lock", "simulation.stored"},
}  # fmt: skip

# {what: the rooms that may import it}, for packages that are not ours.
ONLY_IN = {
    "flax": {"models", "lowrank", "lowrank.fused", "tasks"},
    "optax": {"aggregate", "algorithms", "algorithms.general", "algorithms.personal",
              "algorithms.shared", "combine", "hypergrad", "local", "tasks", "templates"},
    "orbax": {"simulation.checkpoint"},
    "tensorflow_datasets": {"data"},
    "tokenizers": {"data", "pretrained"},
    "dp_accounting": {"combine"},
    "sacrebleu": {"tasks"},
    "nltk": {"tasks"},
    "rouge_score": {"tasks"},
    "sklearn": {"data"},
    "matfree": {"analysis"},
    "matplotlib": {"analysis", "cli.plots"},
    "tensorboardX": {"simulation.run_folder"},
    "safetensors": {"pretrained"},
    "IPython": {"cli.notebook"},
    "wandb": {"simulation.boards"},
    "tqdm": {"cli.following", "cli.notebook"},
    "tyro": {"cli.asked", "cli.options"},
}  # fmt: skip

# {part of JAX without a promise to stay: the rooms that may use it}
UNSTABLE = {
    "_src": set(),
    "experimental": {
        "simulation.engine",
        "simulation.processes",
        "simulation.targets",
        "lowrank.kernel",
    },
    "extend": {"algorithm", "lowrank.fused", "simulation.flops", "simulation.programs"},
    "interpreters": {"lowrank.fused", "simulation.flops"},
}

DEVICES = re.compile(r"\b(pmap|shard_map|psum|devices)\(")
ALGORITHM_FILES = [m for m in MODULES if re.fullmatch(r"algorithms\.\w+\.\w+", m)]


def room(module):
    """The longest room of the table that the module is in."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((n for n in names if n in MAY_IMPORT), parts[0])


def imports(path):
    """(modules of ours, other packages) that a file imports, wherever in it."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            found = [(node.module, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            continue
        for module, name in found:
            if name == "jaxfed.lazily":  # there before any module of ours
                continue
            if name.split(".", maxsplit=1)[0] != "jaxfed":
                others.add(module.split(".", maxsplit=1)[0])
                continue
            deep, short = name.removeprefix("jaxfed."), module.removeprefix("jaxfed.")
            ours.add(deep if deep in MODULES else short)
    return ours, others


def code(path):
    """The file without its docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


def lines(node):
    return node.end_lineno - node.lineno + 1


def nodes(module, *kinds):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


# ---------------------------------------------------------------------- who may know whom


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_whom_it_may_know(module):
    here = room(module)
    strangers = {room(name) for name in imports(MODULES[module])[0]} - {here}
    allowed = MAY_IMPORT[here]
    assert not {r for r in strangers if r not in allowed and r.split(".")[0] not in allowed}


def test_the_table_lists_the_house_as_it_is():
    assert set(MAY_IMPORT) == {room(module) for module in MODULES}


def test_no_room_knows_itself_by_a_detour():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for below in sorted(MAY_IMPORT[name]):
                visit(below, [*path, name])
            done.add(name)

    for name in MAY_IMPORT:
        visit(name, [])


def test_methods_models_and_tasks_know_no_data():
    """Nor does a room through which they would."""
    reached, found = {"algorithms", "models", "pretrained", "values"}, set()
    while reached - found:
        name = (reached - found).pop()
        found.add(name)
        reached |= MAY_IMPORT[name]
    assert {"tasks", "combine", "algorithms.personal"} < found
    assert not [name for name in found if name.split(".")[0] == "data"]


@pytest.mark.parametrize("module", MODULES)
def test_a_package_is_imported_only_where_it_belongs(module):
    _, others = imports(MODULES[module])
    assert not [p for p in others & set(ONLY_IN) if room(module) not in ONLY_IN[p]]


@pytest.mark.parametrize("module", MODULES)
def test_names_of_jax_that_change_between_versions_stand_in_few_files(module):
    """A change of JAX is then mended in one place."""
    found = nodes(module, ast.Import, ast.ImportFrom)
    names = {getattr(n, "module", None) or a.name for n in found for a in n.names}
    used = {name.split(".")[1] for name in names if name.startswith("jax.")}
    assert not [p for p in used & set(UNSTABLE) if room(module) not in UNSTABLE[p]]


@pytest.mark.parametrize(
    "module", [m for m in MODULES if room(m) not in ("simulation.engine", "simulation.population")]
)
def test_only_the_engine_speaks_of_devices(module):
    assert DEVICES.findall(code(MODULES[module])) == []


def test_the_engine_does_speak_of_devices():
    """So that the search above finds what it looks for."""
    found = DEVICES.findall(code(MODULES["simulation.engine"]))
    assert set(found) >= {"pmap", "shard_map", "devices"}


# ---------------------------------------------------------------------- doors and sizes


def test_the_top_floor_is_small():
    """`py.typed`, a mark for type checkers, is no room."""
    rooms = {p.name for p in ROOT.iterdir()} - {"__pycache__", "py.typed"}
    assert len(rooms) <= 18, sorted(rooms)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_classes_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 350
    assert not [c.name for c in nodes(module, ast.ClassDef) if lines(c) > 150]


@pytest.mark.parametrize("module", [m for m, p in MODULES.items() if p.name == "__init__.py"])
def test_no_module_shares_a_name_with_what_its_package_exports(module):
    package = importlib.import_module(f"jaxfed.{module}" if module != "__init__" else "jaxfed")
    prefix = "" if module == "__init__" else f"{module}."
    inside = {
        m.removeprefix(prefix) for m in MODULES if m.startswith(prefix) and m not in (module, "")
    }
    hidden = [
        name
        for name in inside
        if "." not in name
        and hasattr(package, name)
        and not isinstance(getattr(package, name), types.ModuleType)
    ]
    assert hidden == []


@pytest.mark.parametrize("module", [m for m, p in MODULES.items() if p.name == "__init__.py"])
def test_public_names_are_listed_without_code(module):
    """But for the function by which packages are lazy, which jaxfed itself has."""
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    lists = [n for n in body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    listed = [node for found in lists for node in found.body]
    assert all(isinstance(node, ast.ImportFrom) for node in listed)
    rest = [node for node in body if node not in lists]
    plain = [n for n in rest if isinstance(n, ast.ImportFrom | ast.Expr | ast.Assign)]
    code = [ast.unparse(n).partition("(")[0] for n in rest if n not in plain]
    lazy = ["import importlib", "import pkgutil", "import sys", "def lazily"]
    assert code == (lazy if module == "__init__" else [])


@pytest.mark.parametrize("module", ["__init__", "data", "analysis"])
def test_a_lazy_package_has_the_names_that_it_lists_for_types(module):
    package = importlib.import_module("jaxfed" if module == "__init__" else f"jaxfed.{module}")
    lists = next(n for n in nodes(module, ast.If) if ast.unparse(n.test) == "TYPE_CHECKING")
    listed = {alias.name: node.module for node in lists.body for alias in node.names}
    where = getattr(package, "WHERE", {})
    assert where == {n: m for n, m in listed.items() if m != package.__name__}
    assert set(listed) <= set(dir(package))
    for name, source in listed.items():
        made = getattr(package, name)
        whole = f"{source}.{name}"
        expected = getattr(importlib.import_module(source), name) if name in where else None
        assert made is (expected or importlib.import_module(whole))
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'x'"):
        _ = package.x


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_called_of(module):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert not [f for f in nodes(module, *kinds) if f.name == "of"]


NUMERIC = {"int", "float", "int | None", "float | None"}


def flags_of_numbers():
    """The names on the command line of scripts whose values are single numbers."""
    for path in sorted((ROOT.parent / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                written = isinstance(node.args[0], ast.Constant)
                if written and words.get("type") in ("int", "float") and "nargs" not in words:
                    yield node.args[0].value.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("folder", ["jaxfed", "configs", "benchmarks", "docs"])
def test_a_number_that_is_zero_is_not_replaced_by_a_default(folder):
    """No `number or default`: it takes 0 for a number that is not given. Ask `is None`."""
    flags, found = set(flags_of_numbers()), []
    for path in sorted((ROOT.parent / folder).rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            given = (*function.args.args, *function.args.kwonlyargs)
            numbers = {
                a.arg for a in given if a.annotation and ast.unparse(a.annotation) in NUMERIC
            }
            numbers |= {f"asked.{flag}" for flag in flags}
            for node in ast.walk(function):
                if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
                    replaced = {ast.unparse(v) for v in node.values[:-1]} & numbers
                    found += [f"{path.name}:{node.lineno} {r}" for r in replaced]
    assert found == []


FOLDERS = ("jaxfed", "configs", "benchmarks", "tests")
FILES = [path for folder in FOLDERS for path in sorted((ROOT.parent / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_no_splat_of_literals(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    splats = [a for c in calls for a in c.args if isinstance(a, ast.Starred)]
    assert not [ast.unparse(s) for s in splats if isinstance(s.value, ast.Tuple | ast.List)]


# ---------------------------------------------------------------------- algorithms


@pytest.mark.parametrize("module", ALGORITHM_FILES)
def test_an_algorithm_is_one_short_file_that_defines_it(module):
    """Under 80 lines of code."""
    assert len(code(MODULES[module]).splitlines()) < 80
    name = module.rpartition(".")[2]
    made = importlib.import_module(f"jaxfed.{module}")
    assert (
        made.__dict__[name].__annotations__["return"]
        is importlib.import_module("jaxfed.algorithm").Algorithm
    )


def test_every_algorithm_has_a_row_and_a_name_in_the_zoo():
    zoo = importlib.import_module("jaxfed.algorithms.zoo")
    files = {module.rpartition(".")[2] for module in ALGORITHM_FILES}
    assert {row.function.__name__ for row in zoo.ROWS} == files == set(zoo.__all__)
    assert len({row.name for row in zoo.TABLE}) == len(zoo.TABLE)


@pytest.mark.parametrize("module", [m for m in ALGORITHM_FILES if ".general." in m])
def test_a_general_algorithm_knows_no_factors(module):
    text = code(MODULES[module])
    assert not re.search(r"\blowrank\b|\bfactors\b|\bTheta\b", text)
