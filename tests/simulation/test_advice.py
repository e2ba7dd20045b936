"""What can run but may not be meant is warned of before the first round."""

import algorithms
import jax
import oracle
import pytest

from jaxfed import Experiment, trees
from jaxfed.data import federate
from jaxfed.data.sources import Source
from jaxfed.simulation import advice

WORLD = algorithms.UNEQUAL


def advised(name, rounds, change=lambda fed: fed):
    """The warnings about an experiment with this algorithm."""
    rows = [WORLD.start[k] + range(n) for k, n in enumerate(WORLD.count)]
    data = federate(Source(WORLD.examples, WORLD.examples), rows)
    fed = change(algorithms.ALGORITHMS[name](algorithms.RATE))
    e = Experiment(data, fed, rounds=rounds, cohort=3)
    server = fed.init(jax.random.key(0))
    cohort = oracle.cohort(WORLD, [()] * 3, [0, 1, 2], 0)
    advice.warn(e, fed, trees.shapes(server), cohort)


def test_weights_that_stay_as_drawn_are_named():
    def untrained(fed):
        def run_round(server, cohort, for_each_client):
            new, states, metrics = fed.run_round(server, cohort, for_each_client)
            full = new.theta.full | {"head/bias": server.theta.full["head/bias"]}
            return new._replace(theta=new.theta._replace(full=full)), states, metrics

        return fed._replace(run_round=run_round)

    with pytest.warns(UserWarning, match="never changes full/head/bias, though"):
        advised("fedlora", 2, untrained)


def test_merges_that_never_come_are_named():
    with pytest.warns(UserWarning, match="no merge is due in 2 rounds"):
        advised("fedloru", 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "rounds"), [("fedloru", 3), ("fedavg", 1)])
def test_what_is_meant_gets_no_warning(name, rounds):
    advised(name, rounds)
