"""A run of a claim: a cell of its table, with a learning rate and a seed; see sweep.py."""

import importlib
import json

import sweep

from jaxfed import Experiment


def experiment(
    *,
    claim: str = "binding_rank",
    cell: str = "fedavg",
    settings: str = "",
    data_dir: str | None = None,
    learning_rate: float = 0.3,
    seed: int = 0,
) -> Experiment:
    """A cell of a claim, evaluated on the test set or, for the choice of a rate, on held-out rows.

    Args:
        claim: the script's name.
        cell: the cell's name in the script's `cells`, such as 2/balanced/10.
        settings: of the claim, as JSON; by default its QUICK ones.
        data_dir: a TFDS data directory, or an .npz file; digits need none.
        learning_rate: of the clients.
        seed: deals the clients, and decides the first weights and who sees what in which order.
    """
    module = importlib.import_module(claim)
    settings = settings or json.dumps(module.QUICK)
    problem, given = sweep.problem(settings, data_dir), json.loads(settings)
    of = module.cells(given)[cell]
    made = sweep.experiment(problem, of, rate=learning_rate, seed=seed, marks=given["marks"])
    watched = getattr(module, "watched", None)
    return watched(made, problem, of, given) if watched else made
