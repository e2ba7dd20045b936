"""`jaxfed completion bash|zsh|fish`: a script by which a shell completes commands and options.

It lists the options that a command has with any config. It needs no JAX.
"""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from jaxfed.cli import asked

FURTHER = {"sweep": ("--tune", "--successive-halving"), "describe": ("--for",)}


def script(shell: str) -> str:
    """The script; ValueError for a shell that has none."""
    made = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in made:
        raise ValueError(f"no completion for {shell!r}; give one of {', '.join(made)}")
    return made[shell](words())


def words() -> dict[str, dict[str, tuple[str, ...]]]:
    """{command: {option: the words that it takes, if they are listed}}."""
    with_fields = {
        name: {f"--{f.name.replace('_', '-')}": _choices(f.type) for f in dataclasses.fields(kind)}
        for name, (_, kind) in asked.options().items()
    }
    for name, options in FURTHER.items():
        with_fields[name] |= dict.fromkeys(options, ())
    return with_fields | {name: {} for name in asked.TEXTS}


def _choices(kind: Any) -> tuple[str, ...]:
    parts = (kind, *get_args(kind))
    return tuple(str(w) for p in parts if get_origin(p) is Literal for w in get_args(p))


def _bash(commands: dict[str, dict[str, tuple[str, ...]]]) -> str:
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


def _zsh(commands: dict[str, dict[str, tuple[str, ...]]]) -> str:
    return f"autoload -Uz compinit bashcompinit\ncompinit\nbashcompinit\n{_bash(commands)}"


def _fish(commands: dict[str, dict[str, tuple[str, ...]]]) -> str:
    lines = [f"complete -c jaxfed -n __fish_use_subcommand -fa '{' '.join(commands)}'"]
    for name, options in commands.items():
        seen = f"complete -c jaxfed -n '__fish_seen_subcommand_from {name}'"
        for option, found in options.items():
            takes = f"-xa '{' '.join(found)}'" if found else "-r"
            lines.append(f"{seen} -l {option[2:]} {takes}")
    lines.append(
        "complete -c jaxfed -n '__fish_seen_subcommand_from completion' -fa 'bash zsh fish'"
    )
    return "\n".join(lines)
