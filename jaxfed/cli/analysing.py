"""`jaxfed analyse`: Hessian spectra, likeness of clients and ranks of updates of a run."""

from jaxfed.analysis import probe, tables
from jaxfed.cli import calling, options, plots
from jaxfed.cli.asked import Analyse
from jaxfed.cli.launching import Launch
from jaxfed.cli.watching import Watch


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed analyse DIR`."""
    path, saved = calling.begun(arguments, "analyse")
    asked = options.parse(Analyse, arguments[1:], f"jaxfed analyse {path}")
    calling.prepare_jax(Launch(cpu_devices=saved["launch"].get("cpu_devices")), watch)
    experiment, _, _ = calling.call(options.stored(path, saved), saved["arguments"], "run")
    found = probe.of_run(experiment, path, asked)
    watch.clear()
    print(tables.tables(found))
    for picture in tables.draw(found, asked.to or plots.place(path)):
        print(picture)
