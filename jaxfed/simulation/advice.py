"""Warnings about an experiment that can run but may not be the one that was meant."""

import warnings

from jaxfed import algorithm as contract
from jaxfed.algorithm import Algorithm, Cohort, PyTree, no_broadcast
from jaxfed.simulation.experiment import Experiment


def warn(e: Experiment, algorithm: Algorithm, server: PyTree, cohort: Cohort) -> None:
    """Warns of trained weights that no round changes, and of merges that never come.

    Server and cohort are shapes.
    """
    if still := contract.untrained(algorithm, server, cohort):
        listed = ", ".join(still[:5]) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
        warnings.warn(
            f"a round never changes {listed}, though the selection trains them: they stay as they "
            "were drawn; leave them out of the selection, or train them too",
            stacklevel=2,
        )
    merges = algorithm.broadcast is not no_broadcast
    if merges and not any(algorithm.broadcast(server, t) for t in range(e.rounds)):
        warnings.warn(
            f"no merge is due in {e.rounds} rounds: the factors are never folded into the base; "
            "run more rounds, or merge more often (`every`)",
            stacklevel=2,
        )
