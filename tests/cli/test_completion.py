"""What a shell completes, and what help and completion import."""

import subprocess
import sys

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


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["jaxfed", "re"], ["resume", "report", "rerun"]),
        (["jaxfed", "run", "mine.py", "--rou"], ["--rounds"]),
        (["jaxfed", "run", "mine.py", "--population", "h"], ["host"]),
        (["jaxfed", "completion", "f"], ["fish"]),
        (["jaxfed", "analyse", "runs/1", "--part", ""], ["weights", "trained", "factors"]),
        (["jaxfed", "run", "min"], []),  # a file: left to the shell
    ],
)
def test_bash_completes_commands_options_and_choices(words, offered):
    assert completed(*words) == offered


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
