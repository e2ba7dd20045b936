"""GPT-2's adapters, of which PEFT has one beside queries, keys and values together.

Of factors (a_q, b_q), (a_k, b_k), (a_v, b_v) that adapter is A = [a_q a_k a_v], of their summed
rank, and B with b_q, b_k and b_v on its diagonal and zeros elsewhere: every product is as before.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxfed.lowrank import Factors

PARTS = ("query", "key", "value")
WHOLE = "c_attn"


def whole(layer: str) -> str:
    """Their name of the layer that holds one of `PARTS`, or of any other layer."""
    head, _, part = layer.rpartition(".")
    return f"{head}.{WHOLE}" if part in PARTS and head.endswith(".attn") else layer


def together(pairs: Mapping[str, Factors]) -> dict[str, Factors]:
    """{their layer: factors}, with those of a layer's queries, keys and values in one."""
    found: dict[str, Factors] = {}
    for layer, f in pairs.items():
        name = whole(layer)
        if name == layer:
            found[layer] = f
        elif name not in found:
            head = layer.rpartition(".")[0]
            found[name] = _beside([pairs.get(f"{head}.{part}") for part in PARTS])
    return found


def _beside(parts: Sequence[Factors | None]) -> Factors:
    """The factors of the parts, of which some may have none, as those of one layer."""
    there = [(i, f) for i, f in enumerate(parts) if f is not None]
    scale, width = there[0][1].scale, there[0][1].b.shape[-1]
    b, row = np.zeros((sum(f.rank for _, f in there), width * len(parts)), np.float32), 0
    for i, f in there:
        b[row : row + f.rank, i * width : (i + 1) * width] = f.b * (f.scale / scale)
        row += f.rank
    return Factors(jnp.concatenate([f.a for _, f in there], axis=-1), jnp.asarray(b), scale)


def apart(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PEFT's tensors, with an adapter of `WHOLE` as one of each part that it changes.

    A part has those components that change it in any layer; if none changes any part, all have all.
    """
    ends = [f".{WHOLE}.lora_{side}.weight" for side in "AB"]
    found = {n: x for n, x in tensors.items() if not n.endswith(tuple(ends))}
    heads = [n.removesuffix(ends[1]) for n in tensors if n.endswith(ends[1])]
    blocks = {head: np.split(tensors[head + ends[1]], len(PARTS)) for head in heads}  # [d, r] each
    for i, part in enumerate(PARTS):
        changes = [np.any(blocks[head][i], axis=0) for head in heads]  # [r] each
        alike = len({len(one) for one in changes}) == 1
        silent = not any(np.any(b) for each in blocks.values() for b in each)
        for head, own in zip(heads, changes, strict=True):
            kept = np.any(changes, axis=0) if alike and not silent else np.ones_like(own)
            if kept.any():
                name = f"{head}.{part}"
                found[f"{name}.lora_A.weight"] = tensors[head + ends[0]][kept]
                found[f"{name}.lora_B.weight"] = blocks[head][i][:, kept]
    return found
