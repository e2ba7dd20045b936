"""The trials of a sweep: the product of the values that settings are given."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from jaxfed.cli import asked, calling, launching, options
from jaxfed.cli.options import Config


class Trial(NamedTuple):
    """One run of a sweep."""

    folder: Path  # named after what differs: DIR/seed=0,learning_rate=0.01
    arguments: list[str]  # `jaxfed run CONFIG ARGUMENTS` is the same run
    settings: dict[str, Any]


def trials(config: Config, given: dict[str, list[str]]) -> tuple[Path, list[Trial]]:
    """(the sweep's folder, a trial for each combination of the values that settings are given)."""
    function = options.function(options.load(config.path, config.text))
    own, changes = launching.settings_of(config, function)
    further = {name.replace("-", "_") for name in asked.FURTHER["sweep"]}
    if clash := sorted(set(own) & further):
        raise ValueError(
            f"{config.path}: the settings {clash} are options of jaxfed sweep; rename them"
        )
    fields = {**own, **changes}
    kinds = {n: kind for n, (kind, _) in fields.items()}
    axes = {n: words for n, words in given.items() if n in kinds and _is_axis(kinds[n], words)}
    made: list[tuple[list[str], dict]] = []
    for values in itertools.product(*(words[1:] for words in axes.values())):
        chosen = {n: _words(kinds[n], words[0], value) for (n, words), value in
                  zip(axes.items(), values, strict=True)}  # fmt: skip
        words = {**given, **chosen}
        _, settings, launch = calling.parsed(config, _flat(words), "sweep")
        if again := [n for other in made if other[1] == settings for n in axes]:
            raise ValueError(f"two trials have the same {', '.join(again)}; give each value once")
        placed = {n: x for n, x in words.items() if n not in ("out", "name")}
        made.append((_flat(placed), settings))
    if not axes:
        raise ValueError(
            "no setting has several values; give some, such as --seed 0 1 2, or use `jaxfed run`"
        )
    out = launch.folder(config.path)
    folders = [
        _folder(out, {n: settings.get(n, fields[n][1]) for n in axes}) for _, settings in made
    ]
    if equal := [folder for folder in folders if folders.count(folder) > 1]:
        raise ValueError(
            f"two trials would have one folder, {equal[0]}: their values differ only in characters "
            "that no folder's name has, such as /; give values that differ elsewhere"
        )
    return out, [
        Trial(folder, [*words, "--out", str(folder)], settings)
        for folder, (words, settings) in zip(folders, made, strict=True)
    ]


class Tuning(NamedTuple):
    """How a sweep chooses the values of settings."""

    names: tuple[str, ...]  # of the settings, which are tuned in this order
    given: dict[str, list[str]]  # the options of the trials that choose, but for their folder
    apart: tuple[str, ...]  # settings in which these trials are not as those they choose for


OF_TUNING = {"tune_seed": "one seed, as in --tune-seed 9", "tune_rounds": "one number from 1 on"}


def for_tuning(given: dict[str, list[str]]) -> Tuning | None:
    """What --tune, --tune-seed and --tune-rounds ask for, which it takes out; None without."""
    tuned = given.pop("tune", None)
    further = {name: given.pop(name) for name in OF_TUNING if name in given}
    if tuned is None:
        if further:
            option = next(iter(further.values()))[0]
            raise ValueError(f"{option} is for the trials of --tune; give both")
        return None
    names = tuple(word.replace("-", "_") for word in tuned[1:])
    if not names or any(len(given.get(n, ())) < 3 for n in names) or len({*names}) < len(names):
        raise ValueError(
            f"--tune {' '.join(tuned[1:])}: name settings that have several values, as in "
            "--tune learning_rate --learning-rate .01 .03 .1"
        )
    if "seed" in names:
        raise ValueError("--tune seed: a seed is nothing to tune; give --seed several values alone")
    if given.pop("on", ["--on", "validation"])[1:] != ["validation"]:
        raise ValueError("--tune chooses on a validation set: leave --on out, or give validation")
    for name, words in further.items():
        least = "1-9" if name == "tune_rounds" else "0-9"
        if len(words) != 2 or not re.fullmatch(f"[{least}][0-9]*", words[1]):
            raise ValueError(f"{' '.join(words)}: give {OF_TUNING[name]}")
    chosen = further.get("tune_seed", given.get("seed", []))  # by default the first of the seeds
    changed = {"seed": ["--seed", chosen[1]]} if chosen else {}
    if "tune_rounds" in further:
        if "rounds" in names:
            raise ValueError("--tune rounds and --tune-rounds exclude each other; give one")
        changed["rounds"] = ["--rounds", further["tune_rounds"][1]]
    rest = {n: words for n, words in given.items() if n not in ("out", "name")}
    apart = ("seed", "on", *(["rounds"] if "rounds" in changed else []))
    return Tuning(names, {**rest, **changed, "on": ["--on", "validation"]}, apart)


def eta(words: list[str] | None, tuned: bool) -> int | None:
    """Of how many trials one goes on at a rung, 2 by default; None if none is dropped."""
    if words is None:
        return None
    if tuned:
        raise ValueError("--tune and --successive-halving both choose among trials; give one")
    if words[1:] and not re.fullmatch("[2-9]|[1-9][0-9]+", " ".join(words[1:])):
        raise ValueError(
            f"--successive-halving {' '.join(words[1:])}: give a whole number from 2 on, of how "
            "many trials one goes on, or none for 2"
        )
    return int(words[1]) if words[1:] else 2


def at_once(words: list[str] | None) -> int:
    """How many trials of one program run in lockstep; 1 by default."""
    if words is None:
        return 1
    if len(words) != 2 or not re.fullmatch("[1-9][0-9]*", words[1]):
        raise ValueError(
            f"--at-once {' '.join(words[1:])}: give a whole number of trials from 1 on, as in "
            "--at-once 5"
        )
    return int(words[1])


def given(arguments: list[str]) -> dict[str, list[str]]:
    """{name: [--name, value, ...]} of the options; ValueError if one is given twice."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option[2:].replace("-", "_")
            if name in found:
                raise ValueError(f"{option} is given twice; give its values after one {option}")
            found[name] = [option, value] if equals else [option]
        else:
            found.setdefault(name, []).append(word)
    return found


def _flat(words: Mapping[str, list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(words.values()))


def _is_axis(kind: Any, words: Sequence[str]) -> bool:
    """True if several values were given, for a setting that takes one."""
    return len(words) > 2 and not any(get_origin(k) is tuple for k in (kind, *get_args(kind)))


def _words(kind: Any, option: str, value: str) -> list[str]:
    """An option with one value, as `jaxfed run` takes it."""
    if kind is bool and value in ("True", "False"):
        return [option if value == "True" else f"--no-{option[2:]}"]
    return [option, value]


def _folder(out: Path, differing: Mapping[str, Any]) -> Path:
    """DIR/seed=0,learning_rate=0.01: what a trial differs in, in characters of every system."""
    name = ",".join(f"{n}={value}" for n, value in differing.items())
    return out / re.sub(r"[^\w.,=+-]", "_", name)
