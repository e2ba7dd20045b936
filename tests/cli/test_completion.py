"""What a shell completes, and what help and completion import."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
from pages import ROOT

from jaxfed.cli import completion, main

pytestmark = pytest.mark.quick

ASK = """
import sys
from jaxfed.cli import main

COMMANDS = (["--help"], ["--version"], ["run", "--help"], ["completion", "fish"])
CONFIGS = (["run", CONFIG, "--help"], ["sweep", CONFIG, "-h"])
for arguments in (*COMMANDS, *CONFIGS):
    try:
        main.main(arguments)
    except SystemExit as ended:
        assert not ended.code
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
SLOW = {"jax", "flax", "optax", "orbax", "matplotlib", "scipy", "sklearn", "tensorflow_datasets"}


def test_help_imports_neither_jax_nor_any_other_slow_package():
    ask = ASK.replace("CONFIG,", f"{str(ROOT / 'configs' / 'images.py')!r},")
    printed = subprocess.check_output([sys.executable, "-c", ask], text=True)
    _, _, imported = printed.rpartition("imported")
    assert "jaxfed" in imported.split()
    assert set(imported.split()) & SLOW == set()


def completed(*words):
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    asks = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _jaxfed; echo ${{COMPREPLY[*]}}"
    script = f"{completion.script('bash')}\n{asks}"
    return subprocess.check_output(["bash", "-c", script], text=True).split()


OFFERED = [
    (["jaxfed", "re"], ["resume", "report", "rerun"]),
    (["jaxfed", "run", "mine.py", "--rou"], ["--rounds"]),
    (["jaxfed", "run", "mine.py", "--population", "h"], ["host"]),
    (["jaxfed", "run", "mine.py", "--stream", ""], ["True", "False"]),
    (["jaxfed", "report", "--ru"], []),  # the folders stand alone
    (["jaxfed", "completion", "f"], ["fish"]),
    (["jaxfed", "analyse", "runs/1", "--part", ""], ["weights", "trained", "factors"]),
    (["jaxfed", "run", "min"], []),  # a file: left to the shell
]


@pytest.mark.parametrize(("words", "offered"), OFFERED)
def test_bash_completes_commands_options_and_choices(words, offered):
    assert completed(*words) == offered


FISH = [
    *OFFERED,
    (["jaxfed", "--ver"], ["--version"]),
    (["jaxfed", "report", "--he"], ["--help"]),
    (["jaxfed", "sweep", "mine.py", "--rounds", ""], []),  # a number, not one of the files
    (["jaxfed", "sweep", "mine.py", "--successive-halving", "--se"], []),
    (["jaxfed", "sweep", "mine.py", "--successive-halving", "--tu"], ["--tune"]),
    (["jaxfed", "report", "runs/1", "--latex", "a"], ["a.tex"]),
]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_what_bash_does_and_knows_which_options_take_files(tmp_path):
    (tmp_path / "a.tex").touch()
    asks = [f"complete -C '{' '.join(words)}'; echo ." for words, _ in FISH]
    script = "\n".join([completion.script("fish"), *asks])
    printed = subprocess.check_output(
        ["fish", "--no-config", "-c", script], text=True, cwd=tmp_path
    )
    found = [part.split() for part in printed.split(".\n")[: len(FISH)]]
    assert [sorted(words) for words in found] == [sorted(offered) for _, offered in FISH]


SHELLS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}


def typed(shell, steps):
    """What a shell shows on a terminal: of each step, a line and an answer, until the answer."""
    ours, its = pty.openpty()
    ends = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    process = subprocess.Popen([shell, *SHELLS[shell]], env={**os.environ, "TERM": "dumb"}, **ends)
    shown = []
    try:
        for line, answer in steps:
            os.write(ours, line.encode())
            shown.append("")
            late = time.monotonic() + 20
            while answer not in shown[-1] and time.monotonic() < late:
                if select.select([ours], [], [], 0.1)[0]:
                    shown[-1] += os.read(ours, 4096).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)
    return shown


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "completion"
    script.write_text(completion.script(shell))
    steps = [
        (f"source {script}; echo rea''dy\n", "ready"),
        ("jaxfed run mine.py --rou\t", "mine.py --rounds"),
        ("\x15jaxfed rep\t", "jaxfed report"),
        ("\x15jaxfed run --population h\t", "--population host"),
    ]
    for (_, answer), shown in zip(steps, typed(shell, steps), strict=True):
        assert answer in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_option(shell, capsys):
    main.main(["completion", shell])
    script = capsys.readouterr().out
    for command, options in completion.words().items():
        assert command in script
        assert all(option.removeprefix("--") in script for option in options)


def test_every_command_is_completed():
    assert set(completion.words()) == {*main.COMMANDS, "completion"}


def test_a_shell_without_completion_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main.main(["completion", "csh"])
    assert "no completion for 'csh'; give one of bash, zsh, fish" in capsys.readouterr().err
