"""What is measured of a run. This module needs no JAX: the command line's help reads it."""

import dataclasses
import re
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Probe:
    """The measurements to make, and their accuracy.

    Args:
        round: the round after which to measure; by default that of the newest checkpoint. 0 is
            before the first round.
        clients: the clients to measure; by default as many as a cohort has, evenly over all.
        part: the parameters of the Hessians: all weights with factors folded in, the trained
            parameters, or the factors alone.
        paths: a regular expression; only weights whose paths match are measured.
        depth: steps of Lanczos' method; each costs one Hessian-vector product.
        probes: random vectors for the Frobenius norm; each costs one Hessian-vector product.
        top: how many top eigenvectors the update is projected on.
        ranks: ranks of the approximations of gradients and updates to compare.
        batch: examples in a batch.
    """

    round: int | None = None
    clients: tuple[int, ...] = ()
    part: Literal["weights", "trained", "factors"] = "weights"
    paths: str = ""
    depth: int = 20
    probes: int = 20
    top: int = 5
    ranks: tuple[int, ...] = (1, 4, 16)
    batch: int = 250

    def chosen(self, path: str) -> bool:
        """True if `paths` matches this path."""
        return re.search(self.paths, path) is not None
