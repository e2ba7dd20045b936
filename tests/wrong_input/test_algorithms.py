"""Wrong local work and values of algorithms are refused before a round is run."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import refusals
from refusals import SGD, WORK, classification, experiment, factors, run, task

from jaxfed import (
    aggregate,
    algorithm,
    algorithms,
    combine,
    hypergrad,
    local,
    lowrank,
    models,
)
from jaxfed.algorithms.general import fedopt as optimizers
from jaxfed.algorithms.general import perfedavg as meta
from jaxfed.lowrank import restarts

pytestmark = pytest.mark.quick

NAN = float("nan")
select = lowrank.Select
fedavg = partial(algorithms.fedavg, client_optimizer=SGD)
merging = partial(combine.accumulate, restart=restarts.reinit)
OWN = {"personal_work": WORK, "client_optimizer": SGD, "personal_optimizer": SGD}


def perfedavg(inner_rate):
    return algorithms.perfedavg(
        task(),
        WORK,
        inner_rate=inner_rate,
        gradient=meta.exact,
        minibatches=meta.same,
        client_optimizer=SGD,
        personal_work=WORK,
    )


def hetlora(**changes):
    given = {"least": 1, "most": 2, "gamma": 0.9, "penalty": 0.0, "ranks": [1] * 4} | changes
    return algorithms.hetlora(factors(rank=2), WORK, client_optimizer=SGD, **given)


def mfedloru(**changes):
    given = {"every": 2, "restart": restarts.reinit, "ranks": [1] * 4, "alpha": 1.0} | changes
    return algorithms.mfedloru(factors(rank=2), WORK, client_optimizer=SGD, **given)


def fdlora(**changes):
    given = {"rounds": 2, "sync": 1, "shots": 1, "search": 1} | changes
    optimizers = dict.fromkeys(("personal_optimizer", "inner_optimizer", "outer_optimizer"), SGD)
    return algorithms.fdlora(factors(rank=2), WORK, personal_work=WORK, **optimizers, **given)


def pf2lora(**changes):
    given = {"inner_rate": 0.1, "rank": 1, "scale": 1.0, "upper_optimizer": SGD} | changes
    heads = {"keep_moments": False, "personal_head": False}
    return algorithms.pf2lora(factors(rank=2), WORK, **given, **heads)


def pfedlora(**changes):
    return algorithms.pfedlora(factors(rank=2), WORK, **OWN, **{"rank": 1} | changes)


def closing_over_an_array():
    shift = jnp.ones(3)
    plain = fedavg(task(), WORK)

    def client(base, theta, k):
        return algorithm.Reply(shift, (), {})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        return server, reply.state, reply.metrics

    return run(plain._replace(run_round=run_round))


def bowl(x, y):
    return jnp.sum((y - x) ** 2)


ONE = jnp.ones(2)

CASES = [
    # local work
    ("no work", lambda: local.Work(10), ValueError, "local work needs epochs or steps, one of"),
    ("two works", lambda: local.Work(10, epochs=1, steps=1), ValueError, "local work needs"),
    ("batch 0", lambda: local.Work(0, epochs=1), ValueError, "batch_size=0; use at least 1"),
    ("batch half", lambda: local.Work(1.5, epochs=1), TypeError, "batch_size=1.5 is a float;"),
    ("batch True", lambda: local.Work(True, epochs=1), TypeError, "batch_size=True is a bool;"),
    ("batch text", lambda: local.Work("10", epochs=1), TypeError, "batch_size='10' is a str;"),
    ("batch None", lambda: local.Work(None, epochs=1), TypeError, "batch_size=None is a"),
    ("epochs -1", lambda: local.Work(10, epochs=-1), ValueError, "epochs=-1; use at least 1"),
    ("epochs half", lambda: local.Work(10, epochs=0.5), TypeError, "epochs=0.5 is a float; give"),
    ("epochs nan", lambda: local.Work(10, epochs=NAN), TypeError, "epochs=nan is a float; give a"),
    ("steps 0", lambda: local.Work(10, steps=0), ValueError, "steps=0; use at least 1"),
    ("steps text", lambda: local.Work(10, steps="5"), TypeError, "steps='5' is a str; give a"),
    (
        "shuffle text",
        lambda: local.Work(10, epochs=1, shuffle="no"),
        TypeError,
        "shuffle is a str; give True or False",
    ),
    (
        "drop_remainder text",
        lambda: local.Work(10, epochs=1, drop_remainder="no"),
        TypeError,
        "drop_remainder is a str; give True or False",
    ),
    ("cosine of 0 rounds", lambda: local.cosine(0.1, 0), ValueError, "rounds=0; use at least 1"),
    ("cosine to nan", lambda: local.cosine(NAN, 10), ValueError, "least=nan; use a finite number"),
    ("cosine to text", lambda: local.cosine("0.1", 10), TypeError, "least='0.1' is a str; give a"),
    ("a rate as schedule", lambda: local.scale_by_round(0.1), TypeError, "schedule=0.1 is a"),
    # algorithms
    ("work a number", lambda: run(fedavg(task(), 10)), TypeError, "work is a int; give a"),
    ("work None", lambda: run(fedavg(task(), None)), TypeError, "work is a NoneType; give a"),
    (
        "a model as task",
        lambda: experiment(fedavg(models.MLP((4,), 10), WORK)),
        TypeError,
        "the algorithm's task is a MLP; make it with Algorithm(..., task=task), so",
    ),
    (
        "an optimizer by rate",
        lambda: run(algorithms.fedavg(task(), WORK, client_optimizer=0.1)),
        TypeError,
        "client_optimizer is a float; give one of optax, such as optax.sgd(0.1)",
    ),
    (
        "an optimizer by name",
        lambda: run(algorithms.fedavg(task(), WORK, client_optimizer="sgd")),
        TypeError,
        "client_optimizer is a str; give one of optax, such as optax.sgd(0.1)",
    ),
    (
        "an optimizer uncalled",
        lambda: run(algorithms.fedavg(task(), WORK, client_optimizer=optax.sgd)),
        TypeError,
        "client_optimizer is a function; give one of optax, such as optax.sgd(0.1)",
    ),
    (
        "a server by rate",
        lambda: run(fedavg(task(), WORK, server_optimizer=1.0)),
        TypeError,
        "server_optimizer is a float; give one of optax, such as optax.sgd(0.1)",
    ),
    (
        "a server uncalled",
        lambda: run(fedavg(task(), WORK, server_optimizer=optax.adam)),
        TypeError,
        "server_optimizer is a function; give one of optax, such as optax.sgd(0.1)",
    ),
    (
        "a mean by name",
        lambda: run(fedavg(task(), WORK, mean="uniform")),
        TypeError,
        "mean='uniform' is a str; give a function of uploads and weights, such as",
    ),
    (
        "centralised batch 0",
        lambda: algorithms.centralised(task(), batch_size=0, optimizer=SGD),
        ValueError,
        "batch_size=0; use at least 1",
    ),
    (
        "mu -1",
        lambda: algorithms.fedprox(task(), WORK, mu=-1.0, client_optimizer=SGD),
        ValueError,
        "mu=-1.0; use a finite number from 0",
    ),
    (
        "mu nan",
        lambda: algorithms.fedprox(task(), WORK, mu=NAN, client_optimizer=SGD),
        ValueError,
        "mu=nan; use a finite number from 0",
    ),
    (
        "mu text",
        lambda: algorithms.fedprox(task(), WORK, mu="1", client_optimizer=SGD),
        TypeError,
        "mu='1' is a str; give a number",
    ),
    (
        "scaffold rate 0",
        lambda: algorithms.scaffold(task(), WORK, learning_rate=0, clients=4),
        ValueError,
        "learning_rate=0; use a finite number above 0",
    ),
    (
        "scaffold rate text",
        lambda: algorithms.scaffold(task(), WORK, learning_rate="1", clients=4),
        TypeError,
        "learning_rate='1' is a str; give a number",
    ),
    (
        "scaffold an optimizer",
        lambda: algorithms.scaffold(task(), WORK, learning_rate=SGD, clients=4),
        TypeError,
        "learning_rate=GradientTransformationExtraArgs(init=<function",
    ),
    (
        "scaffold clients 0",
        lambda: algorithms.scaffold(task(), WORK, learning_rate=1, clients=0),
        ValueError,
        "clients=0; use at least 1",
    ),
    (
        "scaffold of 1000 clients",
        lambda: experiment(algorithms.scaffold(task(), WORK, learning_rate=1, clients=1000)),
        ValueError,
        "the algorithm was made for 1000 clients, as by `ranks`; the data have 4: give",
    ),
    (
        "scaffold server rate",
        lambda: algorithms.scaffold(
            task(), WORK, learning_rate=1, clients=4, server_learning_rate=-1
        ),
        ValueError,
        "server_learning_rate=-1; use a finite number from 0",
    ),
    (
        "feddyn penalty 0",
        lambda: algorithms.feddyn(task(), WORK, penalty=0, clients=4, client_optimizer=SGD),
        ValueError,
        "penalty=0; use a finite number above 0",
    ),
    (
        "feddyn clients half",
        lambda: algorithms.feddyn(task(), WORK, penalty=1, clients=1.5, client_optimizer=SGD),
        TypeError,
        "clients=1.5 is a float; give a whole number",
    ),
    (
        "ditto lam -1",
        lambda: algorithms.ditto(task(), WORK, lam=-1, **OWN),
        ValueError,
        "lam=-1; use a finite number from 0",
    ),
    (
        "ditto lam inf",
        lambda: algorithms.ditto(task(), WORK, lam=float("inf"), **OWN),
        ValueError,
        "lam=inf; use a finite number from 0",
    ),
    (
        "fedper without match",
        lambda: run(algorithms.fedper(task(), WORK, personal="body", client_optimizer=SGD)),
        ValueError,
        "personal='body' matches none of: full/dense_0/bias, full/dense_0/kernel,",
    ),
    (
        "fedper of a list",
        lambda: run(algorithms.fedper(task(), WORK, personal=["head"], client_optimizer=SGD)),
        TypeError,
        "personal=['head'] is a list; give one regular expression, \"a|b\" for either",
    ),
    (
        "fedper of a glob",
        lambda: run(algorithms.fedper(task(), WORK, personal="*head", client_optimizer=SGD)),
        ValueError,
        "personal='*head' is no regular expression (nothing to repeat at position 0);",
    ),
    (
        "fedsa without factors",
        lambda: run(
            algorithms.fedsa(
                classification(select=select(full="kernel")), WORK, client_optimizer=SGD
            )
        ),
        ValueError,
        "matches every path; leave some to share",
    ),
    ("perfedavg rate -1", lambda: perfedavg(-1.0), ValueError, "inner_rate=-1.0; use a finite"),
    ("hessian_free 0", lambda: meta.hessian_free(0.0), ValueError, "delta=0.0; use a finite"),
    (
        "thirds of 10",
        lambda: meta.thirds({"mask": np.ones(10)}),
        ValueError,
        "a batch of 10 has no thirds; use a multiple of three",
    ),
    (
        "adam eta -1",
        lambda: optimizers.adam(-1.0),
        ValueError,
        "eta=-1.0; use a finite number from",
    ),
    ("adam b1 1.5", lambda: optimizers.adam(0.1, b1=1.5), ValueError, "b1=1.5; use a finite"),
    ("adam b2 1.5", lambda: optimizers.adam(0.1, b2=1.5), ValueError, "b2=1.5; use a finite"),
    ("yogi b2 nan", lambda: optimizers.yogi(0.1, b2=NAN), ValueError, "b2=nan; use a finite"),
    ("adagrad tau 0", lambda: optimizers.adagrad(0.1, tau=0), ValueError, "tau=0; use a finite"),
    ("hetlora least 0", lambda: hetlora(least=0), ValueError, "least=0, most=2"),
    (
        "hetlora least above most",
        lambda: hetlora(least=3, ranks=None),
        ValueError,
        "least=3, most=2",
    ),
    ("hetlora most half", lambda: hetlora(most=1.5), TypeError, "most=1.5 is a float; give a"),
    ("hetlora gamma 2", lambda: hetlora(gamma=2.0), ValueError, "gamma=2.0"),
    ("hetlora penalty -1", lambda: hetlora(penalty=-1.0), ValueError, "penalty=-1.0"),
    ("hetlora ranks 3", lambda: hetlora(ranks=[1, 1, 1, 3]), ValueError, "ranks=[1, 1, 1, 3] are"),
    ("hetlora ranks empty", lambda: hetlora(ranks=[]), ValueError, "ranks=[] are not all from"),
    ("hetlora ranks half", lambda: hetlora(ranks=[1.5] * 4), TypeError, "ranks[0]=1.5 is a"),
    ("hetlora ranks a number", lambda: hetlora(ranks=2), TypeError, "ranks is a int; give"),
    (
        "hetlora ranks of two",
        lambda: run(hetlora(ranks=[1, 1])),
        ValueError,
        "the algorithm was made for 2 clients, as by `ranks`; the data have 4: give",
    ),
    ("hetlora of another rank", lambda: run(hetlora(most=3)), ValueError, "the task's factors"),
    ("mfedloru ranks 0", lambda: mfedloru(ranks=[0] * 4), ValueError, "ranks[0]=0; use at least 1"),
    ("mfedloru ranks empty", lambda: mfedloru(ranks=[]), ValueError, "ranks is empty; give one"),
    ("mfedloru ranks None", lambda: mfedloru(ranks=None), TypeError, "ranks is a NoneType; give"),
    ("mfedloru alpha 0", lambda: mfedloru(alpha=0), ValueError, "alpha=0; use a finite number"),
    ("mfedloru every 0", lambda: mfedloru(every=0), ValueError, "every=[0]: use a whole number"),
    ("pf2lora rank 0", lambda: pf2lora(rank=0), ValueError, "rank=0; use at least 1"),
    ("pf2lora rate nan", lambda: pf2lora(inner_rate=NAN), ValueError, "inner_rate=nan; use a"),
    (
        "pf2lora an optimizer by rate",
        lambda: pf2lora(upper_optimizer=0.1),
        TypeError,
        "upper_optimizer is a float; give one of optax, such as optax.sgd(0.1)",
    ),
    ("pf2lora scale 0", lambda: pf2lora(scale=0), ValueError, "scale=0; use a finite number"),
    ("pf2lora rank 99", lambda: run(pf2lora(rank=99)), ValueError, "rank=99 is above"),
    ("pfedlora rank 0", lambda: pfedlora(rank=0), ValueError, "rank=0; use at least 1"),
    ("pfedlora rank text", lambda: pfedlora(rank="1"), TypeError, "rank='1' is a str; give a"),
    ("pfedlora alpha -1", lambda: pfedlora(alpha=-1), ValueError, "alpha=-1; use a finite number"),
    ("pfedlora rank 99", lambda: run(pfedlora(rank=99)), ValueError, "rank=99 is above"),
    ("fdlora sync 0", lambda: fdlora(sync=0), ValueError, "sync=0; use at least 1"),
    ("fdlora rounds -1", lambda: fdlora(rounds=-1), ValueError, "rounds=-1; use at least 0"),
    ("fdlora shots 0", lambda: fdlora(shots=0), ValueError, "shots=0; use at least 1"),
    ("fdlora search half", lambda: fdlora(search=1.5), TypeError, "search=1.5 is a float; give a"),
    (
        "pfedlora without factors",
        lambda: run(algorithms.pfedlora(task(), WORK, rank=1, **OWN)),
        ValueError,
        "no factors are trained to put an adapter beside; select some",
    ),
    ("an array", closing_over_an_array, TypeError, "the client procedure"),
    # combinators
    (
        "every 0",
        lambda: merging(fedavg(task(), WORK), every=0),
        ValueError,
        "every=[0]: use a whole number of rounds from 1 between merges, or a list of",
    ),
    (
        "every half",
        lambda: merging(fedavg(task(), WORK), every=1.5),
        ValueError,
        "every=[1.5]: use a whole number of rounds from 1 between merges, or a list of",
    ),
    (
        "every True",
        lambda: merging(fedavg(task(), WORK), every=True),
        ValueError,
        "every=[True]: use a whole number of rounds from 1 between merges, or a list",
    ),
    (
        "every None",
        lambda: merging(fedavg(task(), WORK), every=None),
        ValueError,
        "every=[None]: use a whole number of rounds from 1 between merges, or a list",
    ),
    (
        "every text",
        lambda: merging(fedavg(task(), WORK), every="2"),
        ValueError,
        "every=2: use a whole number of rounds from 1 between merges, or a list of the",
    ),
    (
        "every empty",
        lambda: merging(fedavg(task(), WORK), every=[]),
        ValueError,
        "every=[]: use a whole number of rounds from 1 between merges, or a list of",
    ),
    (
        "every [1.5]",
        lambda: merging(fedavg(task(), WORK), every=[1.5]),
        ValueError,
        "every=[1.5]: use a whole number of rounds from 1 between merges, or a list of",
    ),
    (
        "every [0, 1]",
        lambda: merging(fedavg(task(), WORK), every=[0, 1]),
        ValueError,
        "every=[0, 1]: use a whole number of rounds from 1 between merges, or a list",
    ),
    (
        "nothing to merge",
        lambda: run(merging(fedavg(task(), WORK), every=2)),
        ValueError,
        "nothing to merge: no factors are trained; select some with a rank",
    ),
    ("a task to merge", lambda: merging(task(), every=2), TypeError, "algorithm is a Task; give"),
    (
        "restart by name",
        lambda: merging(fedavg(task(), WORK), every=2, restart="keep"),
        TypeError,
        "restart='keep' is a str; give one of lowrank.restarts, such as restarts.reinit",
    ),
    (
        "a name to guard",
        lambda: combine.skip_nonfinite("fedavg"),
        TypeError,
        "algorithm is a str; give an Algorithm, such as fedavg(...) returns",
    ),
    (
        "a task to measure",
        lambda: combine.with_discrepancy(task()),
        TypeError,
        "algorithm is a Task; give an Algorithm, such as fedavg(...) returns",
    ),
    (
        "no discrepancy",
        lambda: run(combine.with_discrepancy(fedavg(task(), WORK))),
        ValueError,
        "clients upload no change of factors, so their averages have no discrepancy;",
    ),
    # aggregation and hypergradients
    (
        "weights of other clients",
        lambda: aggregate.weighted_mean({"w": jnp.ones((3, 2))}, jnp.ones(2)),
        ValueError,
        "leaves are (3, 2), weights (2,); give one a client",
    ),
    (
        "uniform weights of others",
        lambda: aggregate.uniform_mean({"w": jnp.ones((3, 2))}, jnp.ones(2)),
        ValueError,
        "leaves are (3, 2), weights (2,); give one a client",
    ),
    (
        "unrolled 0",
        lambda: hypergrad.unrolled(bowl, ONE, ONE, 0.1, steps=0),
        ValueError,
        "steps=0; use at least 1",
    ),
    (
        "unrolled half",
        lambda: hypergrad.unrolled(bowl, ONE, ONE, 0.1, steps=1.5),
        TypeError,
        "steps=1.5 is a float; give a whole number",
    ),
    (
        "neumann 0",
        lambda: hypergrad.neumann(lambda v: v, ONE, inner_rate=0.1, terms=0),
        ValueError,
        "terms=0; use at least 1",
    ),
    (
        "neumann half",
        lambda: hypergrad.neumann(lambda v: v, ONE, inner_rate=0.1, terms=1.5),
        TypeError,
        "terms=1.5 is a float; give a whole number",
    ),
    (
        "conjugate gradients 0",
        lambda: hypergrad.conjugate_gradients(lambda v: v, ONE, iterations=0),
        ValueError,
        "iterations=0; use at least 1",
    ),
    (
        "conjugate gradients half",
        lambda: hypergrad.conjugate_gradients(lambda v: v, ONE, iterations=1.5),
        TypeError,
        "iterations=1.5 is a float; give a whole number",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)
