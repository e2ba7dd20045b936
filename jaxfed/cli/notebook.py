"""Runs in a notebook: a bar of one line, records that show themselves, and all cores of a CPU."""

import base64
import contextlib
import html
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxfed.analysis import look
from jaxfed.cli import launching, plots, studies
from jaxfed.cli.launching import Launch
from jaxfed.cli.recorded import Run
from jaxfed.simulation import shown
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.run import run

EVERY = 0.5  # seconds between two states of a bar


class Records(list[dict]):
    """The records of a run, one a round, which a notebook shows as a table and curves."""

    def facts(self) -> dict[str, Any]:
        """Rounds, the newest measures, and what was sent by all clients together."""
        sent = sum(r["up"] + r["down"] + r["broadcast"] for r in self)
        last = self[-1]["round"] if self else 0
        return {"rounds": last, **shown.measured(self), "megabytes": f"{sent / 1e6:.1f}"}

    def __repr__(self) -> str:
        return shown.line("Records", self.facts())

    def _repr_html_(self) -> str:
        images = "".join(f'<img style="max-width: 48%" src="{image}">' for image in pictures(self))
        return shown.table("Records", self.facts()) + images


def follow(
    experiment: Experiment,
    directory: str | os.PathLike | None = None,
    host: Host | None = None,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
) -> Records:
    """The records of `run` with these arguments, after a bar of one line has gone to its end."""
    records = Records()
    running = run(experiment, directory, host, resume=resume, allow=allow)
    with contextlib.closing(running), _bar(experiment.rounds) as show:
        for record in running:
            records.append(record)
            show(records)
    return records


def all_cores() -> int:
    """The number of JAX's devices, after a CPU was split into one a core, as `jaxfed run` does.

    Call it first: once JAX has been used, its devices stay as they are. Compiled programs are kept
    for later runs.
    """
    import jax

    launching.keep_programs()
    launching.split_cpu(Launch())
    return jax.local_device_count()


def pictures(records: Sequence[dict]) -> list[str]:
    """PNG images, as addresses that hold their data, of the test measure and the loss by round."""
    groups = studies.grouped([Run(Path(), "run", None, {}, list(records), None)])
    runs = groups[0].runs
    measure = studies.main_measure(runs)
    share, drawn = studies.is_share(measure, runs), plots.curves(measure, groups)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("by_round", "loss"):
            if kind in drawn:
                plot = partial(plots.PLOTS[kind], measure, share, drawn[kind])
                image = look.written(plot, Path(folder) / f"{kind}.png").read_bytes()
                found.append(f"data:image/png;base64,{base64.b64encode(image).decode()}")
    return found


@contextlib.contextmanager
def _bar(rounds: int) -> Iterator[Callable[[Records], None]]:
    """A function of the records so far that shows where a run is, in one line that changes."""
    update, due = _line(), time.monotonic()
    if update is None:
        with tqdm(total=rounds, unit=" rounds", disable=not sys.stderr.isatty()) as progress:
            yield lambda records: _moved(progress, records)
        return

    def show(records: Records) -> None:
        nonlocal due
        if time.monotonic() >= due or records[-1]["round"] == rounds:
            due = time.monotonic() + EVERY
            bar = f'<progress value="{records[-1]["round"]}" max="{rounds}"></progress>'
            update(f"{bar} {html.escape(_words(records, rounds))}")

    yield show


def _moved(progress: tqdm, records: Records) -> None:
    progress.set_postfix(shown.measured(records), refresh=False)
    progress.update(records[-1]["round"] - progress.n)


def _words(records: Records, rounds: int) -> str:
    facts = " ".join(f"{n} {value}" for n, value in shown.measured(records).items())
    return f"round {records[-1]['round']} of {rounds}  {facts}"


def _line() -> Callable[[str], None] | None:
    """What replaces a line of HTML in the notebook that runs this; None outside of one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython import display

    handle = display.display(display.HTML(""), display_id=True)
    return lambda text: handle.update(display.HTML(text))
