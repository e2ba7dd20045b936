"""The certificate of an algorithm: every truth of the contract, and the numbers of its kind."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from jaxfed import values
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.row import Row, Setting
from jaxfed.analysis.certify.contract import TRUTHS
from jaxfed.analysis.certify.line import Line
from jaxfed.analysis.certify.measures import MEASURES
from jaxfed.analysis.certify.subject import Subject
from jaxfed.analysis.certify.world import WORDS
from jaxfed.tasks.task import Task

GIVEN = ("learning_rate", "clients", "cohort", "rounds")
"""Arguments that a function may have beside task and work; it is called with the check's."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What holds for an algorithm; `print` shows it as a table."""

    name: str
    lines: tuple[Line, ...]

    @property
    def holds(self) -> bool:
        """True if no line breaks the contract."""
        return not self.broken

    @property
    def broken(self) -> tuple[Line, ...]:
        """The lines that break the contract."""
        return tuple(line for line in self.lines if line.holds is False)

    def __str__(self) -> str:
        wide = max(len(line.name) for line in self.lines)
        marks = {True: "holds", False: "BROKEN", None: ""}
        rows = [
            f"{marks[line.holds]:6}  {line.name.ljust(wide)}  {line.measured}\n"
            f"{'':{wide + 10}}{line.meaning}"
            for line in self.lines
        ]
        broken = ", ".join(line.name for line in self.broken)
        end = f"the contract is broken: {broken}" if broken else "the contract holds"
        return "\n".join([f"{self.name}, on {WORDS}", "", *rows, "", f"{self.name}: {end}"])


def check(function: Callable[..., Algorithm]) -> Certificate:
    """The certificate of the algorithm that `function(task, work)` returns.

    The task has factors of rank 2 beside one dense layer. The function may have arguments
    `learning_rate`, `clients`, `cohort` and `rounds`, which are given by name; with a
    `learning_rate`, it is also called with zero, which must leave the model. TypeError if it is no
    such function; ValueError, with the error's name, if the algorithm cannot run.
    """
    values.function("function", function, "a function (task, work) that returns an Algorithm")
    name = getattr(function, "__name__", "the algorithm")
    accepted = inspect.signature(function).parameters
    required = [n for n, p in accepted.items() if p.default is p.empty and p.kind in NAMED]
    unknown = [n for n in required[2:] if n not in GIVEN]
    if len(required) < 2 or unknown:
        raise TypeError(
            f"{name}({', '.join(accepted)}) cannot be called with (task, work)"
            f"{''.join(f' for want of {n!r}' for n in unknown[:1])}; give a function of a task and "
            f"local work, whose other arguments have defaults or are among {', '.join(GIVEN)}"
        )

    def make(task: Task, setting: Setting) -> Algorithm:
        given: dict[str, Any] = {
            "learning_rate": setting.rate,
            "clients": setting.clients,
            "cohort": setting.cohort,
            "rounds": setting.rounds,
        }
        return function(task, setting.work, **{n: x for n, x in given.items() if n in accepted})

    return certified(Subject(name, make, "factors", takes_rate="learning_rate" in accepted))


NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
         inspect.Parameter.KEYWORD_ONLY)  # fmt: skip


def check_row(row: Row) -> Certificate:
    """The certificate of a row of the zoo, on the task that it needs."""
    return certified(Subject(row.name, row.make, row.trains))


def certified(subject: Subject) -> Certificate:
    """The certificate; ValueError, with the error that was met, if a round cannot run at all."""
    try:
        return Certificate(subject.name, tuple(line(subject) for line in (*TRUTHS, *MEASURES)))
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise ValueError(
            f"{subject.name} cannot run on the check's task, {WORDS}: {said}"
        ) from error
