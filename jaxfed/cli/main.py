"""The command line: jaxfed run | sweep | resume | report | describe | analyse | export ...

Help, the version and a shell's completion need no JAX: a command is imported when it is called.
"""

import importlib
import os
import platform
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata

from jaxfed.cli import asked, completion, errors, options, watching
from jaxfed.cli.watching import Watch
from jaxfed.simulation import lock, stored

COMMANDS = {
    "run": "running.run",
    "sweep": "sweep.command",
    "resume": "running.resume",
    "report": "report.command",
    "describe": "costing.command",
    "analyse": "analysing.command",
    "export": "export.command",
    "check": "check.command",
    "zoo": "zoo.command",
    "rerun": "rerun.command",
}

PIPE = 13  # the number of SIGPIPE, which Windows does not have

USAGE = """jaxfed: federated learning with low-rank updates, clients as an array axis

  jaxfed run CONFIG [--name value ...]       run a config; --help lists its settings
  jaxfed sweep CONFIG [--name value ...]     run all combinations of settings with several values
  jaxfed resume DIR [--name value ...]       go on with a run that was stopped
  jaxfed rerun DIR [--out NEW]               the same run again, from its folder alone
  jaxfed report DIR [DIR ...] [--group seed] table and plots of one run, or of several together
  jaxfed describe CONFIG [--name value ...]  parameters, bytes, FLOPs and memory, without training;
                                             with --for h100:8 or --for tpu:v5e:2x2 on such devices
  jaxfed analyse DIR [--name value ...]      Hessian spectra, likeness of clients, ranks of updates
  jaxfed check NAME | FILE.py:FUNCTION       what holds for an algorithm; status 1 if it is broken
  jaxfed zoo [NAME]                          the table of the methods, or one with its docstring
  jaxfed export DIR --npz F | --hf FOLDER | --peft FOLDER   the model, for other programs
  jaxfed completion bash | zsh | fish        a script that completes commands and options

`jaxfed COMMAND --help` lists a command's options; `jaxfed --version` the versions.

A wrong input ends in one sentence; JAXFED_TRACEBACK=1 shows where it was raised.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; a wrong input ends in one sentence and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jaxfed", "jax"))
        print(f"{packages}, Python {platform.python_version()}")
        return
    warned: set[str] = set()  # what a sweep's trials all warn of is printed once

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        words = _plain(str(message))
        if words not in warned:
            warned.add(words)
            print(f"warning: {words}", file=sys.stderr)

    warnings.showwarning = warn
    try:
        if arguments[1:] in (["-h"], ["--help"]):
            _help(arguments[0])
        if arguments[0] == "completion":
            print(completion.script(" ".join(arguments[1:])))
            return
        if {"-h", "--help"} & set(arguments[2:]) and arguments[0] in ("run", "sweep", "describe"):
            importlib.import_module("jaxfed.cli.outlines").show_help(arguments[0], arguments[1:])
        with watching.watching() as watch:
            _command(arguments[0])(arguments[1:], watch)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            # Python flushes it once more, at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + PIPE) from None
        if errors.is_of_another_process(error):
            _end_at_once(
                "another process of this run has ended or cannot be reached; see its messages, and "
                "then resume the run with all of them"
            )
        if os.environ.get("JAXFED_TRACEBACK") or not (sentence := errors.sentence(error)):
            raise
        _end(sentence, 2)


def _command(name: str) -> Callable[[list[str], Watch], None]:
    """The function that carries out a command; ValueError if there is none of this name."""
    if name not in COMMANDS:
        raise ValueError(f"no command {name!r}; there are {', '.join([*COMMANDS, 'completion'])}")
    module, _, function = COMMANDS[name].partition(".")
    return getattr(importlib.import_module(f"jaxfed.cli.{module}"), function)


def _help(command: str) -> None:
    """Prints the options that a command has with any config or run, and ends."""
    if command in asked.TEXTS:
        print(asked.TEXTS[command])
        raise SystemExit(0)
    if command in (known := asked.options()):
        before, accepted = known[command]
        options.parse(accepted, ["--help"], f"jaxfed {command}{before}")


def _output_is_closed() -> bool:
    """True if who read what is printed has closed it, as `| head` does; or where none can say."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end(sentence: str, status: int) -> None:
    print(f"jaxfed: {_plain(sentence)}", file=sys.stderr)
    raise SystemExit(status)


def _end_at_once(sentence: str) -> None:
    """Ends the process without JAX's wait of a minute for the other processes, which aborts it."""
    lock.release_all()
    print(f"jaxfed: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)


def _plain(text: str) -> str:
    return "\n".join(map(stored.plain, text.split("\n")))
