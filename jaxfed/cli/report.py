"""`jaxfed report`: tables, plots and files of one run, or of several together."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import tyro

from jaxfed.cli import options, page, plots, recorded, studies, tables
from jaxfed.cli.watching import Watch
from jaxfed.data import values
from jaxfed.simulation import stored

SUFFIXES = {"csv": (".csv",), "latex": (".tex", ".latex"), "html": (".html", ".htm")}


@dataclasses.dataclass(frozen=True)
class Report:
    """Tables and plots of one run, or of several together; also of runs that still go on.

    Args:
        runs: the runs' folders.
        group: settings, such as seed, in which runs of one group differ: a line is then a group,
            with mean, standard deviation and 95 % interval, and groups are compared in pairs.
        accuracy: the level at which rounds and megabytes are compared, of accuracy or, for a task
            without it, of its first measure; by default 95 % of the best.
        csv: a .csv file for the table's numbers.
        latex: a .tex file for the table as a tabular.
        html: an .html file for one page with curves, tables and settings, which needs nothing else.
        to: where the plots go; by default the plots folder of the (first) run.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    group: tuple[str, ...] = ()
    accuracy: float | None = None
    csv: Path | None = None
    latex: Path | None = None
    html: Path | None = None
    to: Path | None = None


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed report DIR [DIR ...]`."""
    asked = options.parse(Report, arguments, "jaxfed report")
    if not asked.runs:
        raise ValueError("give the folders of runs: jaxfed report DIR [DIR ...]")
    _check_files({name: path for name in SUFFIXES if (path := getattr(asked, name)) is not None})
    if asked.accuracy is not None:
        values.number("accuracy", asked.accuracy)
    groups = studies.grouped([recorded.read(r) for r in asked.runs], asked.group)
    found = tables.table(groups, asked.accuracy)
    print(tables.text(found))
    if asked.group and (paired := tables.paired(groups)):
        print(f"\n{paired}\n")
    for path, write in ((asked.csv, tables.as_csv), (asked.latex, tables.as_latex)):
        if path is not None:
            print(stored.save(path, write(found)))
    if asked.html is not None:
        print(stored.save(asked.html, page.page(groups, asked.accuracy)))
    for picture in plots.draw(groups, asked.to or plots.place(asked.runs[0])):
        print(picture)


def _check_files(files: Mapping[str, Path]) -> None:
    """Raises ValueError unless each has a suffix of its kind: nobody's source is replaced."""
    for name, path in files.items():
        if path.suffix.lower() not in SUFFIXES[name] or path.is_dir():
            raise ValueError(
                f"--{name} would replace {path}, which is something else by its name; give a file "
                f"that ends in {' or '.join(SUFFIXES[name])}"
            )
    options.check_apart(files)
