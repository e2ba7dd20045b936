"""jaxfed check: the certificate of a row of the zoo, or of a function in a file of one's own."""

import difflib
import inspect
import re
import types
from pathlib import Path

from jaxfed.algorithms import zoo
from jaxfed.analysis.certify import certificate
from jaxfed.analysis.certify.certificate import Certificate
from jaxfed.cli import calling, errors, options
from jaxfed.cli.launching import Launch
from jaxfed.cli.watching import Watch


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed check NAME | FILE.py:FUNCTION`."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ValueError("give one algorithm: jaxfed check NAME, or jaxfed check FILE.py:FUNCTION")
    calling.prepare_jax(Launch(cpu_devices=DEVICES), watch)
    found = certified(arguments[0])
    watch.clear()
    print(found)
    if not found.holds:
        raise SystemExit(1)


DEVICES = 3
"""CPU devices; a cohort of five does not fill them evenly."""


def certified(word: str) -> Certificate:
    """The certificate of what a word of the command line names."""
    if word in NAMES:
        return certificate.check_row(NAMES[word])
    path, separator, name = word.rpartition(":")
    if not separator:
        near = difflib.get_close_matches(word, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"the zoo has no row {word!r}; {hint}`jaxfed zoo` lists the rows, and FILE.py:FUNCTION "
            "is an algorithm of your own"
        )
    config = options.read(_existing(path, word))
    with options.at_home(config), errors.reading():
        module = _loaded(config)
        function = getattr(module, name, None)
        if not inspect.isfunction(function):
            there = [n for n, f in vars(module).items() if _is_own(f, module)]
            raise ValueError(
                f"{path} has no function {name!r}; it has {', '.join(there) or 'none at all'}"
            )
        return certificate.check(function)


NAMES = {row.name: row for row in zoo.TABLE}


def _existing(path: str, word: str) -> Path:
    if not re.search(r"\.py$", path):
        raise ValueError(f"{word!r} names no Python file; give FILE.py:FUNCTION, or a zoo's row")
    found = options.path(path)
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {found}")
    return found


def _loaded(config: options.Config) -> types.ModuleType:
    """The file's module; ValueError, with the error's name, if it cannot be executed."""
    try:
        return options.load(config.path, config.text)
    except (SyntaxError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"{options.short(config.path)} cannot be executed: {type(error).__name__}: {error}"
        ) from error


def _is_own(thing: object, module: types.ModuleType) -> bool:
    return inspect.isfunction(thing) and thing.__module__ == module.__name__
