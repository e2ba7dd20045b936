"""Which errors end in one sentence, and which need their traceback."""

import contextlib
import dis
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxfed.cli import options

PACKAGE = Path(__file__).parents[1]
KNOWN = (ValueError, TypeError, FloatingPointError, ImportError)


def sentence(error: Exception) -> str:
    """The message, and the line of the config that led to it; "" if the traceback is needed.

    A user can act on the message alone if the system sent it, if it is about the syntax of a
    config, or if a `raise` of jaxfed or of a config raised it. Any other error, such as JAX's about
    a user's own model, needs its traceback.
    """
    if isinstance(error, SyntaxError):
        line = f"{options.short(error.filename or '')}, line {error.lineno}"
        return f"{line}: {error.msg}: {(error.text or '').strip()}"
    known = isinstance(error, KNOWN) and _raised_here(error)
    return f"{error}{_place(error)}" if known or isinstance(error, OSError) else ""


def is_of_another_process(error: BaseException) -> bool:
    """True if a collective failed as one of several processes was not there to take part."""
    import jax

    lost = "Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination|[Hh]eartbeat|[Bb]arrier"
    several, cause = jax.process_count() > 1, error.__cause__
    ours = isinstance(error, jax.errors.JaxRuntimeError) and re.search(lost, str(error))
    return several and (bool(ours) or (cause is not None and is_of_another_process(cause)))


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """While a config is read, what goes wrong in a line of its own is a ValueError with the line.

    Such as a function of jaxfed called with an argument that it does not have.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        if _file(_last(error)) not in options.configs():
            raise
        raise ValueError(f"{error}{_place(error)}") from error


def _raised_here(error: Exception) -> bool:
    """True if the error comes from a `raise` in jaxfed or in a config, not from a call there."""
    last = _last(error)
    ours = Path(_file(last)).is_relative_to(PACKAGE) or _file(last) in options.configs()
    return ours and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _last(error: Exception) -> TracebackType:
    """Where it was raised. Exceptions that were caught have a traceback."""
    last: Any = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return last


def _file(at: TracebackType) -> str:
    return at.tb_frame.f_code.co_filename


def _place(error: Exception) -> str:
    """The innermost line of a config on the way to the error, in brackets; "" without one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in options.configs():
            return f" ({options.short(frame.filename)}, line {frame.lineno})"
    return ""
