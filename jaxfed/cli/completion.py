"""`jaxfed completion bash|zsh|fish`: a script by which a shell completes commands and options.

It lists the options that a command has with any config. It needs no JAX.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from jaxfed.cli import asked

Words = tuple[str, ...] | None  # that an option takes, () if they are not listed; None is a path

BARE = ("--successive-halving",)  # may stand without its value


def script(shell: str) -> str:
    """The script; ValueError for a shell that has none."""
    made = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in made:
        raise ValueError(f"no completion for {shell!r}; give one of {', '.join(made)}")
    return made[shell](words())


def words() -> dict[str, dict[str, Words]]:
    """{command: {option: the words that it takes}}."""
    with_fields = {
        name: {
            f"--{f.name.replace('_', '-')}": _words(f.type)
            for f in dataclasses.fields(kind)
            if get_origin(f.type) is not Annotated  # of an argument that stands alone
        }
        for name, (_, kind) in asked.options().items()
    }
    for name, options in asked.FURTHER.items():
        with_fields[name] |= dict.fromkeys((f"--{option}" for option in options), ())
    return with_fields | {name: {} for name in asked.TEXTS}


def _words(kind: Any) -> Words:
    parts = (kind, *get_args(kind))
    if Path in parts:
        return None
    if bool in parts:
        return ("True", "False")
    return tuple(str(w) for p in parts if get_origin(p) is Literal for w in get_args(p))


def _bash(commands: dict[str, dict[str, Words]]) -> str:
    listed = "\n".join(
        f'        {name}) options="{" ".join([*options, "--help"])}" ;;'
        for name, options in commands.items()
    )
    choices = "\n".join(
        f'        "{name} {option}") words="{" ".join(found)}" ;;'
        for name, options in commands.items()
        for option, found in options.items()
        if found
    )
    return f"""_jaxfed() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" options="" words=""
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$current"))
        return
    fi
    case "$command $before" in
{choices}
        "completion completion") words="bash zsh fish" ;;
    esac
    case "$command" in
{listed}
    esac
    if [[ $current == -* ]]; then words="$options"; fi
    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); fi
}}
complete -o default -F _jaxfed jaxfed"""


def _zsh(commands: dict[str, dict[str, Words]]) -> str:
    return f"autoload -Uz compinit bashcompinit\ncompinit\nbashcompinit\n{_bash(commands)}"


def _fish(commands: dict[str, dict[str, Words]]) -> str:
    lines = [
        f"complete -c jaxfed -n __fish_use_subcommand -fa '{' '.join(commands)}'",
        "complete -c jaxfed -n __fish_use_subcommand -l version",
        "complete -c jaxfed -s h -l help",
    ]
    for name, options in commands.items():
        seen = f"complete -c jaxfed -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} -l {option[2:]}{_taken(option, w)}" for option, w in options.items()]
    lines.append(
        "complete -c jaxfed -n '__fish_seen_subcommand_from completion' -fa 'bash zsh fish'"
    )
    return "\n".join(lines)


def _taken(option: str, words: Words) -> str:
    """What fish offers after an option: nothing of its own, files (-r), or these words alone."""
    if option in BARE:
        return ""
    if words is None:
        return " -r"
    return f" -xa '{' '.join(words)}'" if words else " -x"
