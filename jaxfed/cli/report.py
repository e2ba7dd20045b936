"""`jaxfed report`: tables, plots and files of one run, or of several together."""

from collections.abc import Mapping
from pathlib import Path

from jaxfed import values
from jaxfed.cli import options, page, plots, recorded, studies, tables
from jaxfed.cli.asked import Report
from jaxfed.cli.watching import Watch
from jaxfed.simulation import stored

SUFFIXES = {"csv": (".csv",), "latex": (".tex", ".latex"), "html": (".html", ".htm")}


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed report DIR [DIR ...]`."""
    asked = options.parse(Report, arguments, "jaxfed report")
    if not asked.runs:
        raise ValueError("give the folders of runs: jaxfed report DIR [DIR ...]")
    _check_files({name: path for name in SUFFIXES if (path := getattr(asked, name)) is not None})
    if asked.accuracy is not None:
        values.number("accuracy", asked.accuracy)
    runs = recorded.folders(asked.runs)
    first = asked.runs[0] if recorded.is_sweep(asked.runs[0]) else runs[0]
    groups = studies.grouped([recorded.read(run) for run in runs], asked.group)
    found = tables.table(groups, asked.accuracy, asked.measure)
    print(tables.text(found))
    if asked.group and (paired := tables.paired(groups, asked.measure)):
        print(f"\n{paired}\n")
    for path, write in ((asked.csv, tables.as_csv), (asked.latex, tables.as_latex)):
        if path is not None:
            print(stored.save(path, write(found)))
    if asked.html is not None:
        print(stored.save(asked.html, page.page(groups, asked.accuracy, asked.measure)))
    for picture in plots.draw(groups, asked.to or plots.place(first), asked.measure):
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
