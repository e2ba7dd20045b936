"""Values of algorithms are checked where they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfed import algorithms, local
from jaxfed.algorithms.general import fedopt, perfedavg
from jaxfed.lowrank import restarts
from jaxfed.templates import check_number

WORK, SGD = local.Work(4, epochs=1), {"client_optimizer": optax.sgd(0.1)}
OWN = {"personal_work": WORK, "personal_optimizer": optax.sgd(0.1), **SGD}
MERGED = {"every": 2, "restart": restarts.keep}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, 0.5, 3, np.float32(2), np.int64(1), jnp.float32(-1)])
def test_numbers_in_range_and_traced_ones_pass(value):
    check_number("x", value, 0.0)


def test_a_traced_number_passes_inside_jit():
    jax.jit(lambda x: check_number("x", x, 0.0))(-1.0)


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (NAN, ValueError), (INF, ValueError), (5, ValueError), ("1", TypeError),
     (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_others_are_refused_with_name_value_and_range(value, error):
    with pytest.raises(error, match=f"rate={value!r}"):
        check_number("rate", value, 0.0, 4.0)


@pytest.mark.parametrize("value", [0.5, np.float64(2), "2"])
def test_where_a_count_is_wanted_fractions_are_refused(value):
    with pytest.raises(TypeError, match="give a whole number"):
        check_number("clients", value, 1)


WRONG = {
    "ditto lam": lambda: algorithms.ditto(None, WORK, lam=-1, **OWN),
    "ditto lam nan": lambda: algorithms.ditto(None, WORK, lam=NAN, **OWN),
    "fedprox mu": lambda: algorithms.fedprox(None, WORK, mu=-0.1, **SGD),
    "fedprox mu nan": lambda: algorithms.fedprox(None, WORK, mu=NAN, **SGD),
    "scaffold rate": lambda: algorithms.scaffold(None, WORK, learning_rate=0.0, clients=2),
    "scaffold rate inf": lambda: algorithms.scaffold(None, WORK, learning_rate=INF, clients=2),
    "scaffold server": lambda: algorithms.scaffold(
        None, WORK, learning_rate=0.1, clients=2, server_learning_rate=NAN
    ),
    "scaffold clients": lambda: algorithms.scaffold(None, WORK, learning_rate=0.1, clients=0),
    "feddyn clients": lambda: algorithms.feddyn(None, WORK, penalty=1.0, clients=2.5, **SGD),
    "perfedavg rate": lambda: algorithms.perfedavg(
        None,
        WORK,
        inner_rate=-0.1,
        gradient=perfedavg.exact,
        minibatches=perfedavg.same,
        personal_work=WORK,
        **SGD,
    ),
    "perfedavg delta": lambda: perfedavg.hessian_free(0.0),
    "pf2lora rank": lambda: algorithms.pf2lora(
        None,
        WORK,
        rank=0,
        inner_rate=0.1,
        upper_optimizer=optax.sgd(0.1),
        keep_moments=False,
        personal_head=False,
    ),
    "feddpa a": lambda: algorithms.feddpa_t(None, WORK, rank=1, a=1.5, **OWN),
    "feddpa a nan": lambda: algorithms.feddpa_f(None, WORK, rounds=2, a=NAN, **OWN),
    "feddpa rounds": lambda: algorithms.feddpa_f(None, WORK, rounds=0, a=0.5, **OWN),
    "feddpa rank": lambda: algorithms.feddpa_t(None, WORK, rank=1.5, a=0.5, **OWN),
    "pfedlora alpha": lambda: algorithms.pfedlora(None, WORK, rank=1, alpha=0.0, **OWN),
    "mfedloru ranks": lambda: algorithms.mfedloru(
        None, WORK, **MERGED, ranks=[1, 0], alpha=1.0, **SGD
    ),
    "mfedloru alpha": lambda: algorithms.mfedloru(
        None, WORK, **MERGED, ranks=[1], alpha=NAN, **SGD
    ),
    "hetlora gamma": lambda: algorithms.hetlora(
        None, WORK, least=1, most=2, gamma=NAN, penalty=0.1, **SGD
    ),
    "hetlora penalty": lambda: algorithms.hetlora(
        None, WORK, least=1, most=2, gamma=0.9, penalty=NAN, **SGD
    ),
    "fedopt eta": lambda: fedopt.adam(-1.0),
    "fedopt tau": lambda: fedopt.adam(0.1, tau=0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_when_the_algorithm_is_made(name):
    with pytest.raises((ValueError, TypeError), match=r"=.*(use|give) "):
        WRONG[name]()
