"""A config's settings without a run of its code: `jaxfed run CONFIG --help` needs no JAX."""

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

from jaxfed.cli import asked, launching, options

LIGHT = {"__future__", "collections", "dataclasses", "enum", "math", "pathlib", "typing"}
MORE = {"sweep": asked.SWEEP, "describe": asked.DESCRIBE}


def show_help(command: str, arguments: list[str]) -> None:
    """Prints the help of `jaxfed COMMAND CONFIG --help` and ends; returns if the config must run.

    It must if a type or a default of a setting follows from more than constants and types.
    """
    path = options.path(arguments[0])
    if not path.is_file():
        return
    config = options.read(path)
    if (module := outline(config.path, config.text)) is None:
        return
    function = options.function(module)
    accepted = launching.accepted(
        config, function, inspect.getdoc(module) or "", MORE.get(command, "")
    )
    options.parse(accepted, ["--help"], f"jaxfed {command} {options.short(config.path)}")


def outline(path: Path, text: str) -> ModuleType | None:
    """A module with the config's docstring, constants and function `experiment`, without its body.

    None if a statement at its top may have another effect than to define names, or if what
    `experiment` is defined by is not there.
    """
    made = ModuleType(f"{options.CONFIG}{path.stem}")
    made.__file__ = str(path)
    sys.modules[made.__name__] = made
    names = vars(made)
    try:
        tree = ast.parse(text)
        made.__doc__ = ast.get_docstring(tree, clean=False)
        for node in tree.body:
            if not _only_defines(node):
                return None
            for name in _defined(node):
                names.pop(name, None)
            _execute(node, names, str(path))
        inspect.get_annotations(names["experiment"], eval_str=True)
    except Exception:  # whatever it is, a run of the config says it better
        return None
    return made


def _only_defines(node: ast.stmt) -> bool:
    kinds = (
        ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    )
    if isinstance(node, ast.ImportFrom):
        return all(alias.name != "*" for alias in node.names)
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "__name__ == '__main__'"
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, kinds)


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return {n.id for n in stored if isinstance(n.ctx, ast.Store)}


def _execute(node: ast.stmt, names: dict, path: str) -> None:
    """Defines what the statement defines, if that needs nothing heavy."""
    if isinstance(node, ast.FunctionDef) and node.name == "experiment" and not node.decorator_list:
        node.returns = None
        node.body = [ast.Expr(ast.Constant(ast.get_docstring(node) or ""))]
    elif isinstance(node, ast.Import | ast.ImportFrom):
        modules = [n.name for n in node.names] if isinstance(node, ast.Import) else [node.module]
        if not {str(name).partition(".")[0] for name in modules} <= LIGHT:
            return
    elif not isinstance(node, ast.Assign | ast.AnnAssign):
        return
    module = ast.fix_missing_locations(ast.Module([node], []))
    try:
        exec(compile(module, path, "exec", dont_inherit=True), names)
    except NameError:
        if isinstance(node, ast.FunctionDef):
            raise
