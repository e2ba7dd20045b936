"""Writes the parts of the pages that follow from the code: `python docs/write.py`.

They stand between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; a test holds them to the code.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
HOUSE = DOCS.parent / "tests" / "test_house.py"

# The modules of the API page. Those that are packages list what their __init__ lists.
PUBLIC = (
    "jaxfed",
    "jaxfed.simulation.loaded",
    "jaxfed.simulation.participation",
    "jaxfed.algorithm",
    "jaxfed.algorithms",
    "jaxfed.algorithms.general.fedopt",
    "jaxfed.combine",
    "jaxfed.combine.compress",
    "jaxfed.local",
    "jaxfed.aggregate",
    "jaxfed.templates",
    "jaxfed.hypergrad",
    "jaxfed.trees",
    "jaxfed.lowrank",
    "jaxfed.lowrank.forms",
    "jaxfed.lowrank.mixed",
    "jaxfed.lowrank.restarts",
    "jaxfed.lowrank.rules",
    "jaxfed.tasks",
    "jaxfed.tasks.scores",
    "jaxfed.models",
    "jaxfed.pretrained",
    "jaxfed.data",
    "jaxfed.data.sources",
    "jaxfed.data.tables",
    "jaxfed.data.pictures",
    "jaxfed.data.cifar",
    "jaxfed.data.partition",
    "jaxfed.data.images",
    "jaxfed.data.text",
    "jaxfed.data.glue",
    "jaxfed.data.nlg",
    "jaxfed.data.squad",
    "jaxfed.analysis.operators",
    "jaxfed.analysis.spectrum",
    "jaxfed.analysis.gradients",
    "jaxfed.analysis.updates",
)


def main() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")


def current(text: str) -> str:
    """The text of a page with its made parts as the code has them now."""
    for name, make in PARTS.items():
        part = re.compile(f"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        text = part.sub(lambda found: found[1] + make() + found[2], text)  # noqa: B023 (used here)
    return text


# ---------------------------------------------------------------------- the house


def may_import() -> dict[str, set[str]]:
    """{room: the rooms that it may import}, the table of tests/test_house.py."""
    for node in ast.parse(HOUSE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT":
            entries = zip(node.value.keys, node.value.values, strict=True)
            return {key.value: {name.value for name in _elements(v)} for key, v in entries}
    raise ValueError(f"{HOUSE} has no table MAY_IMPORT; the page of the house shows it")


def _elements(node: ast.expr) -> list[ast.Constant]:
    return node.elts if isinstance(node, ast.Set) else []  # the other is set()


def house() -> str:
    rows = [f"| `{room}` | {_listed(below)} |" for room, below in may_import().items()]
    return "\n".join(["| room | may import |", "| --- | --- |", *rows, ""])


def _listed(rooms: set[str]) -> str:
    return ", ".join(f"`{room}`" for room in sorted(rooms)) or "no other"


def floors() -> str:
    table = may_import()

    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in table[room]), default=-1)

    rooms: dict[int, list[str]] = {}
    for room in table:
        rooms.setdefault(floor(room), []).append(room)
    rows = [f"| {n} | {', '.join(f'`{r}`' for r in rooms[n])} |" for n in sorted(rooms)[::-1]]
    return "\n".join(["| floor | rooms |", "| --- | --- |", *rows, ""])


# ---------------------------------------------------------------------- the zoo


def zoo() -> str:
    lines = []
    for family in ("general", "shared", "personal"):
        about = first_line(importlib.import_module(f"jaxfed.algorithms.{family}"))
        lines += [
            f"**{family}**: {about}",
            "",
            "| method | function | theta | sends | keeps | exact | oracle | source |",
        ]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
        for row in importlib.import_module("jaxfed.algorithms.zoo").TABLE:
            if row.family == family:
                function = f"`{row.function.__name__}`"
                exact = "yes" if row.exact else ""
                oracle = f"[{row.oracle.kind}](../tests/{row.oracle.file})"
                about = (row.sends, row.keeps, exact, oracle, row.source)
                cells = (row.name, function, row.trains, *about)
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def measured(script: str, part: str) -> str:
    """A table that a script of benchmarks/claims makes of its results."""
    path = DOCS.parent / "benchmarks" / "claims" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(script, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be loaded; the tables of its results are made by it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, part)(json.loads(module.FOUND.read_text(encoding="utf-8")))


def combine() -> str:
    return "\n".join([*names(importlib.import_module("jaxfed.combine")), ""])


# ---------------------------------------------------------------------- the API


def api() -> str:
    return "\n".join(line for name in PUBLIC for line in _section(importlib.import_module(name)))


def _section(module: types.ModuleType) -> Iterator[str]:
    yield from (f"## {module.__name__}", "", first_line(module), "", *names(module), "")


def names(module: types.ModuleType) -> Iterator[str]:
    """A table of the module's public names."""
    yield from ("| name | |", "| --- | --- |")
    for name, thing in public(module).items():
        if isinstance(thing, types.ModuleType):
            yield f"| `{name}` | module: {first_line(thing)} |"
        else:
            yield f"| `{name}{arguments(thing)}` | {first_line(thing)} |"


def public(module: types.ModuleType) -> dict[str, Any]:
    """{name: thing}: what a package's __init__ lists, or what a module defines, in its order."""
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    package = hasattr(module, "__path__")
    names = [name for node in tree.body for name in _names(node, package)]
    return {n: getattr(module, n) for n in names if not n.startswith("_") and n[:1].isalpha()}


def _names(node: ast.stmt, package: bool) -> list[str]:
    if package and isinstance(node, ast.ImportFrom):
        if node.names[0].name == "*":
            return list(importlib.import_module(node.module or "").__all__)
        return [alias.asname for alias in node.names if alias.asname]
    if package and isinstance(node, ast.If):  # of TYPE_CHECKING
        return [name for inside in node.body for name in _names(inside, package)]
    if package:  # how it is lazy is no part of what it lists
        return []
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def arguments(thing: Any) -> str:
    """(names of arguments), without types and defaults; nothing for a value or a Protocol."""
    if not callable(thing) or getattr(thing, "_is_protocol", False):
        return ""
    model = any(
        base.__module__.startswith("flax") for base in getattr(_whole(thing), "__mro__", ())
    )
    hidden = {"_", *(("parent", "name") if model else ())}  # every flax module has these two
    keyword, named = ["*"], []
    for p in inspect.signature(thing).parameters.values():
        if p.kind is p.KEYWORD_ONLY and keyword:
            named.append(keyword.pop())
        if p.name not in hidden:
            named.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name)
    return f"({', '.join(named).removesuffix(', *')})"


def first_line(thing: Any) -> str:
    """The first line of a docstring of its own; of a value, its repr; else nothing."""
    if not callable(thing) and not isinstance(thing, types.ModuleType):
        return f"`{thing!r}`"
    line = (inspect.getdoc(_whole(thing)) or "").partition("\n")[0]
    made = line.startswith(f"{getattr(thing, '__name__', '')}(")  # by NamedTuple, dataclass
    return "" if made else line.replace("|", "\\|")


def _whole(thing: Any) -> Any:
    """What a partial function is part of; anything else itself."""
    return thing.func if isinstance(thing, functools.partial) else thing


PARTS: dict[str, Callable[[], str]] = {
    "floors": floors,
    "house": house,
    "zoo": zoo,
    "certificates": functools.partial(measured, "certificates", "certificates"),
    "bias": functools.partial(measured, "certificates", "bias"),
    "shared bias": functools.partial(measured, "certificates", "shared_bias"),
    "runs on digits": functools.partial(measured, "zoo_runs", "digits"),
    "runs on text": functools.partial(measured, "zoo_runs", "text"),
    "arms": functools.partial(measured, "zoo_runs", "roberta"),
    "combine": combine,
    "api": api,
}


if __name__ == "__main__":
    main()
