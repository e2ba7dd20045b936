"""The options of the commands that have some of their own, and the help of all.

The command line's help reads this module; it needs no JAX.
"""

import dataclasses
import inspect
from pathlib import Path

import tyro

from jaxfed.analysis.settings import Probe
from jaxfed.cli import launching
from jaxfed.cli import options as config


@dataclasses.dataclass(frozen=True)
class Report:
    """Tables and plots of one run, or of several together; also of runs that still go on.

    Args:
        runs: the runs' folders; a sweep's stands for its trials.
        group: settings, such as seed, in which runs of one group differ: a line is then a group,
            with mean, standard deviation and 95 % interval, and groups are compared in pairs.
        measure: what runs are compared by, such as f1 or, for clients' own models,
            personal/accuracy/mean; by default accuracy or, without it, the task's first measure.
        accuracy: the level of that measure at which rounds and megabytes are compared; by default
            95 % of the best.
        csv: a .csv file for the table's numbers.
        latex: a .tex file for the table as a tabular.
        html: an .html file for one page with curves, tables and settings, which needs nothing else.
        to: where the plots go; by default the plots folder of the (first) run or sweep.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    group: tuple[str, ...] = ()
    measure: str | None = None
    accuracy: float | None = None
    csv: Path | None = None
    latex: Path | None = None
    html: Path | None = None
    to: Path | None = None


@dataclasses.dataclass(frozen=True)
class Export:
    """The model of a run, written to one or more of three forms.

    Args:
        npz: a new file of NumPy arrays {"layer/kernel": weight}, the factors merged.
        hf: a new folder in the format of Hugging Face, the factors merged; for runs that started
            from such a folder.
        peft: a new folder with adapter_model.safetensors and adapter_config.json, for PEFT beside
            the pretrained folder.
        client: whose model, by name or number; by default the common one.
        round: a round that has a checkpoint; by default the newest.
        checkpoint: the pretrained folder that the run started from; by default the one that its
            settings name.
    """

    npz: Path | None = None
    hf: Path | None = None
    peft: Path | None = None
    client: str | None = None
    round: int | None = None
    checkpoint: Path | None = None


@dataclasses.dataclass(frozen=True)
class Rerun:
    """A run again, from its folder: its config, arguments, devices and clients at once.

    Data, settings and algorithm must be as they were. Other versions are a warning. At the end it
    says whether the records are the same.

    Args:
        out: the new folder; by default runs/NAME-DATE-TIME.
        allow: names of what may differ: a setting, config, data, algorithm.
    """

    out: Path | None = None
    allow: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Analyse(Probe):
    """What is measured, how closely, and where its plots go."""

    to: Path | None = None


Analyse.__doc__ = (
    f"{inspect.getdoc(Probe)}\n    to: where the plots go; by default the run's plots folder."
)


RUN = """`jaxfed {command} CONFIG --help` lists the config's own settings as well: the arguments of
its function `experiment`. In mine.py,

    def experiment(rank: int = 2, learning_rate: float = 0.05, seed: int = 0) -> Experiment:

is what `jaxfed {command} mine.py --rank 8 --learning-rate .1` calls, with seed 0.
{more}
Args:
"""
FURTHER = {  # {command: its options beside those below}
    "sweep": ("tune", "tune-seed", "tune-rounds", "successive-halving", "at-once", "measure"),
    "describe": ("for",),
}
SWEEP = """A setting that is given several values, as in --seed 0 1 2, has a trial for each.

Beside the options below, --tune NAME ... chooses these settings on a validation set first, one
after another, with the first seed or --tune-seed N and all rounds or --tune-rounds N.
--successive-halving [ETA] ends trials early: of every ETA (2), the best goes on at each rung. Both
compare accuracy, of clients' own models if they deploy such, or --measure NAME.
--at-once N runs N (1) trials that differ in numbers only as one array, for a GPU of small models.
"""
DESCRIBE = """With --for h100:1, h100:8, a100:1 or tpu:v5e:2x2, a round is compiled for devices that
are not here.
"""
RESUME = """Goes on with a run that was stopped, to the same end, in every bit.

Args:
    rounds: more than before extends the run; schedules in the config stay as they were.
    allow: names of what may differ from the run as it was started: a setting, config, data,
        algorithm, versions.
"""

CHECK = """jaxfed check NAME               a row of the zoo; `jaxfed zoo` lists them
jaxfed check FILE.py:FUNCTION   FUNCTION(task, work) -> Algorithm

Measures in a minute what holds for an algorithm; ends with status 1 if the contract is broken.
A FUNCTION with the arguments learning_rate, clients, cohort or rounds is given them by name.
"""

ZOO = """jaxfed zoo         every method: family, theta, what is sent and kept, exact, oracle
jaxfed zoo NAME    one of them, with its oracle's test and the docstring of its file
"""

COMPLETION = """jaxfed completion bash | zsh | fish   a script that completes commands and options

bash    jaxfed completion bash >> ~/.bash_completion
zsh     jaxfed completion zsh > ~/.jaxfed-completion, and in ~/.zshrc: source ~/.jaxfed-completion
fish    jaxfed completion fish > ~/.config/fish/completions/jaxfed.fish
"""
TEXTS = {"check": CHECK, "zoo": ZOO, "completion": COMPLETION}  # of commands without options


def options() -> dict[str, tuple[str, type]]:
    """{command: (what comes before its options, they)}: those that it has with any config or run"""

    def with_config(command: str, more: str = "") -> type:
        text = RUN.format(command=command, more=more) + config.args(launching.Changes)
        return launching.with_launch(launching.CHANGES, {}, text)

    further = {"rounds": (int | None, None), "allow": (tuple[str, ...], ())}
    return {
        "run": (" CONFIG", with_config("run")),
        "sweep": (" CONFIG", with_config("sweep", f"\n{SWEEP}")),
        "describe": (" CONFIG", with_config("describe", f"\n{DESCRIBE}")),
        "resume": (" DIR", launching.with_launch(further, {}, RESUME)),
        "report": ("", Report),
        "analyse": (" DIR", Analyse),
        "export": (" DIR", Export),
        "rerun": (" DIR", Rerun),
    }
