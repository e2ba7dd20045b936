"""Configs and command lines: a function's typed keyword defaults are the options."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import linecache
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_origin

import tyro


class Config(NamedTuple):
    """A config as it is executed."""

    text: str
    path: Path  # its `__file__`, absolute
    directory: Path  # its relative paths start there


def read(path: Path) -> Config:
    """The config at this path; the file is read once."""
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file; a config ends in .py")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    return Config(text, path.absolute(), Path.cwd())


def stored(folder: Path, saved: Mapping[str, Any]) -> Config:
    """The config that a run's folder holds, with its settings.json `saved`.

    It gets the path and the directory that it had when the run started, if they still exist, so
    that it finds its data and modules from wherever it is resumed.
    """
    config = read(folder / "config.py")
    directory = Path(str(saved.get("directory", "")))
    if not (directory.is_absolute() and directory.is_dir()):
        return config
    original = directory / str(saved.get("config", ""))
    return config._replace(
        path=original if original.is_file() else config.path, directory=directory
    )


@contextlib.contextmanager
def at_home(config: Config) -> Iterator[None]:
    """While a config is loaded and called: relative paths start from its directory, and it can
    import modules beside its file. Installed packages come before those.
    """
    before = list(sys.path)
    with contextlib.chdir(config.directory):
        if not (config.path.parent / "settings.json").exists():  # nobody's modules lie in a run's
            sys.path.append(str(config.path.parent))
        try:
            yield
        finally:
            sys.path[:] = before


def load(path: Path, text: str) -> ModuleType:
    """The module that this text makes, with `path` as its file. No compiled file is read."""
    module = ModuleType(f"{CONFIG}{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # so that annotations can be resolved
    # Tracebacks show the lines that were executed, also if the file has changed since.
    linecache.cache[str(path)] = len(text), None, text.splitlines(keepends=True), str(path)
    exec(compile(text, path, "exec", dont_inherit=True), vars(module))
    return module


CONFIG = "jaxfed_config_"


def configs() -> set[str]:
    """The configs that were loaded, as tracebacks name them."""
    return {str(m.__file__) for name, m in sys.modules.items() if name.startswith(CONFIG)}


def short(path: str | Path) -> str:
    """The path from here, if that is shorter."""
    try:
        return min(str(path), os.path.relpath(path), key=len)
    except ValueError:  # on another drive of Windows
        return str(path)


def function(module: ModuleType) -> Callable:
    """A config's function `experiment`."""
    function = getattr(module, "experiment", None)
    if not callable(function):
        path = short(module.__file__ or "")
        raise ValueError(f"{path} has no function `experiment`; see configs/quickstart.py")
    return function


def settings(
    function: Callable, path: str, reserved: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of a config's settings."""
    try:
        types = inspect.get_annotations(function, eval_str=True)
    except NameError as error:
        raise ValueError(f"{path}: {error}, in the types of the settings; import it") from None
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ValueError(f"{path}: the setting {name} must have a name; leave out the slash")
        if parameter.default is inspect.Parameter.empty or name not in types:
            raise ValueError(f"{path}: the setting {name} needs a type and a default")
    if clash := set(parameters) & set(reserved):
        raise ValueError(f"{path}: the settings {sorted(clash)} are options of jaxfed; rename them")
    return {n: (types[n], parameter.default) for n, parameter in parameters.items()}


def args(documented: Any) -> str:
    """The lines of the Args section of a docstring."""
    return (inspect.getdoc(documented) or "").partition("Args:\n")[2]


def parse(options: Any, arguments: list[str], program: str) -> Any:
    """The options as given; a wrong one ends in one sentence that lists what exists."""
    known = {f.name.replace("_", "-") for f in dataclasses.fields(options)}
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        name = name.removeprefix("no-") if name not in known else name
        if word.startswith("--") and name not in {*known, "help"}:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{near[0]}? " if near else ""
            listed = " ".join(f"--{n}" for n in sorted(known))
            raise ValueError(f"{program} has no option --{name}; {hint}there are {listed}")
    if {"--help", "-h"} & set(arguments):
        return tyro.cli(options, args=arguments, prog=program)
    parsed = _quietly(options, arguments)
    if parsed is None:
        raise ValueError(_wrong_value(options, arguments, program))
    _check_paths(parsed, arguments, program)
    found = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(options)}
    return dataclasses.replace(parsed, **{n: _at_home(value) for n, value in found.items()})


def taken(name: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the value of --name, the other arguments) of an option that is no field of options."""
    for i, word in enumerate(arguments):
        if word == f"--{name}":
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise ValueError(f"--{name} has no value; give one")
            return arguments[i + 1], [*arguments[:i], *arguments[i + 2 :]]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2], [*arguments[:i], *arguments[i + 1 :]]
    return None, list(arguments)


def _check_paths(parsed: Any, arguments: list[str], program: str) -> None:
    """Raises ValueError if a path is empty, which would be the working directory."""
    for before, word in itertools.pairwise(["", *arguments]):
        if word and not re.fullmatch("--[a-zA-Z_-]+=", word):
            continue
        option = (word or before).rstrip("=")
        given = getattr(parsed, option.strip("-").replace("-", "_"), None)
        if isinstance(given, Path) or not option.startswith("--"):
            raise ValueError(f"{program}: the path after {option or program!r} is empty; give one")


def path(word: str) -> Path:
    """The path that a word of the command line is, with ~ as the user's home."""
    if not word:
        raise ValueError("the path after the command is empty; give a folder or a file")
    return _at_home(Path(word))


def _at_home(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError(f"{value} is in nobody's home here; give the whole path") from None


def check_apart(paths: Mapping[str, Path]) -> None:
    """Raises ValueError if two of {option: what it writes} are one, or one lies in the other."""
    for (first, one), (second, other) in itertools.combinations(paths.items(), 2):
        a, b = (Path(os.path.realpath(path)) for path in (one, other))
        if a == b or a in b.parents or b in a.parents:
            raise ValueError(
                f"--{first} {one} and --{second} {other} are one place, or one in the other; give "
                "each a place of its own"
            )


def _quietly(options: Any, arguments: list[str]) -> Any:
    """The options as given, or None if tyro cannot read them."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return tyro.cli(options, args=arguments, console_outputs=False)
    return None


def _wrong_value(options: Any, arguments: list[str], program: str) -> str:
    """Which of the given options is not of its type, in one sentence."""
    types = {f.name.replace("_", "-"): f.type for f in dataclasses.fields(options)}
    starts = [i for i, word in enumerate(arguments) if word.startswith("--")]
    for begin, end in itertools.pairwise([*starts, len(arguments)]):
        given = arguments[begin:end]
        if _quietly(options, given) is not None:
            continue
        name, _, value = given[0].removeprefix("--").partition("=")
        value = " ".join([value, *given[1:]]).strip()
        wanted = types.get(name.replace("_", "-"), "another value")
        if wanted is bool:
            return f"{program}: --{name} takes no value; give --{name} or --no-{name}"
        return f"{program}: --{name} wants {_in_words(wanted)}, not {value!r}"
    return f"{program}: cannot read {' '.join(arguments)!r}; see --help"


def _in_words(kind: Any) -> str:
    """A type as a user would name it: "int or auto", "several int", "Path or None"."""
    if get_origin(kind) is tuple:
        return f"several {_in_words(get_args(kind)[0])}"
    if parts := get_args(kind):
        return " or ".join(map(_in_words, parts))
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
