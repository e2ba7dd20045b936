"""`jaxfed rerun`: a run again, from what its folder holds."""

import dataclasses
import itertools
import warnings
from pathlib import Path

import jax

from jaxfed.cli import calling, following, launching, options
from jaxfed.cli.asked import Rerun
from jaxfed.cli.launching import HOST, Launch
from jaxfed.cli.watching import Watch
from jaxfed.simulation import identity, run_folder, stored
from jaxfed.simulation.host import Host
from jaxfed.simulation.prepare import Origin


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed rerun DIR [--out NEW]`."""
    path, saved = calling.begun(arguments, "rerun")
    asked = options.parse(Rerun, arguments[1:], f"jaxfed rerun {path}")
    if saved.get("changes"):
        raise ValueError(
            f"{path} was resumed with changes, which settings.json lists; run it with `jaxfed run`"
        )
    if not _records(path):
        raise ValueError(
            f"{path} has no record in metrics.jsonl with which a rerun could be compared: its run "
            f"was stopped before its first round; go on with `jaxfed resume {path}`"
        )
    if asked.out is not None and (why := run_folder.why_not_new(asked.out)):
        raise FileExistsError(why)
    launch = _launch(path, saved, watch)
    config = options.stored(path, saved)
    experiment, settings, _ = calling.call(config, saved["arguments"], "rerun")
    experiment = dataclasses.replace(experiment, rounds=saved["experiment"]["rounds"])
    changed = identity.changes(saved, identity.identity(experiment, settings, config.text))
    if versions := changed.pop("versions", None):
        warnings.warn(f"the run had {versions[0]}; here are {versions[1]}", stacklevel=1)
    identity.check_allowed(changed, asked.allow)
    out = asked.out or launching.new_folder(path.resolve().name)
    about = calling.about(config, str(saved.get("config")), saved["arguments"], launch)
    origin = Origin(config.text, settings, about | {"directory": str(saved.get("directory"))})
    following.go(experiment, launch, out, watch, origin=origin)
    if jax.process_index() == 0:
        print(compared(path, out))


def _launch(path: Path, saved: dict, watch: Watch) -> Launch:
    """How the run was carried out, as far as this machine has its devices; JAX is made ready."""
    before = {f.name: saved["launch"][f.name] for f in HOST if f.name in saved["launch"]}
    known = run_folder.read_host(path)
    form = ("chunk", "fuse", "convolutions", "devices")
    before |= {name: known[name] for name in form if name in known}
    cpus = Launch(cpu_devices=saved["launch"].get("cpu_devices"))
    calling.prepare_jax(cpus, watch)
    if (before.get("devices") or 1) > jax.device_count():
        warnings.warn(
            f"the run had {before['devices']} devices, and there are {jax.device_count()}; its "
            "records will be the same to float rounding",
            stacklevel=1,
        )
        before |= {"devices": None}
    return dataclasses.replace(cpus, host=Host(**before))


def compared(old: Path, new: Path) -> str:
    """Whether two runs have the same records, in a sentence; seconds do not count."""
    for before, now in itertools.zip_longest(_records(old), _records(new)):
        if before is None or now is None:
            fewer = old if before is None else new
            return (
                f"compared  {fewer} has no round {(now or before)['round']}; all before are equal"
            )
        if before != now:
            names = [*before, *(n for n in now if n not in before)]
            pairs = {n: [found.get(n, "not there") for found in (before, now)] for n in names}
            name, (was, here) = next((n, pair) for n, pair in pairs.items() if pair[0] != pair[1])
            return stored.plain(
                f"compared  round {now['round']} differs: {name} was {was} and is {here}"
            )
    return "compared  all records are equal, in every digit"


def _records(folder: Path) -> list[dict]:
    """The records of a run without their seconds, none if it was stopped before the first."""
    path = folder / "metrics.jsonl"
    return [
        {n: v for n, v in record.items() if n != "seconds"}
        for _, record in (run_folder.records(path) if path.exists() else ())
    ]
