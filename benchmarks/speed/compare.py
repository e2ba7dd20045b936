"""Rounds of a workload in jaxfed and in PyTorch, timed in turn and held against each other."""

import math
from collections.abc import Callable, Mapping, Sequence

import ours
import timing

# Seconds of a round, measured once on a quiet machine of 2 cores (AMD Zen 4): the tuned loop in two
# processes, and the fastest of twelve implementations. Only their ratio is used.
TABLE = {
    "W1": (0.420, 0.385, "plain jitted JAX, scan over chunks"),
    "W2": (2.53, 2.53, "PyTorch loop, two processes"),
    "W3": (1.97, 1.08, "DrJAX 0.2.1, two devices"),
    "W4": (3.50, 3.50, "PyTorch loop, two processes"),
    "W5": (2.72, 2.51, "pfl-research 0.6.0, two processes"),
}


def compared(
    name: str, modes: Sequence[str], repeats: int, clients: int | None, chunk: int | None
) -> dict[str, dict]:
    """{"jaxfed" or "torch MODE": seconds of its rounds}, as timing.alternate gives them.

    Ends the script with a sentence if weights differ after any round.
    """
    one_round, norms = (
        ours.make(name, clients=clients, chunk="auto" if chunk is None else chunk),
        {},
    )
    functions = {"jaxfed": noted(norms, "jaxfed", lambda: one_round()["norm"])}
    peers = {}
    if modes:
        import torch_peers

        peers = {f"torch {m}": torch_peers.make(name, m, clients=clients) for m in modes}
    for who, peer in peers.items():
        functions[who] = noted(norms, who, lambda peer=peer: peer.round().norm)
    seconds = timing.alternate(functions, repeats)
    for peer in peers.values():
        peer.close()
    agree(norms)
    return seconds


def noted(
    norms: dict[str, list[float]], who: str, one_round: Callable[[], float]
) -> Callable[[], None]:
    """one_round, whose norm goes to the end of norms[who]."""
    mine = norms.setdefault(who, [])
    return lambda: mine.append(one_round())


def agree(norms: Mapping[str, Sequence[float]]) -> None:
    """Ends the script unless all have jaxfed's norm after each round, within 1e-3 of it."""
    for who, theirs in norms.items():
        for i, (a, b) in enumerate(zip(theirs, norms["jaxfed"], strict=True)):
            if not math.isclose(a, b, rel_tol=1e-3):
                raise SystemExit(f"{who} differs after round {i + 1}: norm {a} against {b}")


def against_the_fastest(name: str, seconds: Mapping[str, Mapping]) -> str:
    """A sentence: jaxfed beside the two-process loop here, and so beside the fastest of TABLE."""
    loop, fastest, peer = TABLE[name]
    mine = seconds["jaxfed"]["median"] / seconds["torch loop2"]["median"]
    return (
        f"{name}: {mine:.3f} of the two-process loop's time; the fastest peer ({peer}) takes "
        f"{fastest / loop:.3f} of it, so jaxfed takes {mine * loop / fastest:.2f} of the "
        "fastest peer's round time"
    )
