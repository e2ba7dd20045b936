"""A counterfactual server: other rules of aggregation for the uploads that one rule got.

In round t the clients' factors A_k, B_k go to the algorithm's own rule, which makes the next model,
and to every other rule, which makes a model that nobody trains. For each model W_r

    discrepancy   ||W_r - (W + M)|| / ||M - s A B||,    M = s sum_k p_k A_k B_k
    distance      ||W_r - W_applied|| / ||M - s A B||
    loss          of W_r on the examples of the next round's clients, before they train

(W + s A B is the model that the clients received). No client trains twice: the loss is a pass
without gradients, and the other models cross no wire, as no such server exists.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, values
from jaxfed.algorithm import Algorithm, Cohort, PyTree
from jaxfed.combine.measure import after_training
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.lowrank.rules import Rule, applied, stacked

APPLIED = "applied"
BATCH = 64  # examples of a client that are scored at once


class Model(NamedTuple):
    """What a rule made: the weights that carry factors, and the factors, each {path: ...}."""

    base: dict[str, jax.Array]
    factors: dict[str, Factors]


class Counterfactual(NamedTuple):
    """The server's state in `counterfactual`."""

    inner: Any
    models: dict[str, Model]  # of each rule, from the last round's uploads

    @property
    def base(self) -> PyTree:
        """The inner server's frozen weights."""
        return self.inner.base

    @property
    def theta(self) -> PyTree:
        """The inner server's trained weights."""
        return self.inner.theta


def counterfactual(algorithm: Algorithm, *, rules: Mapping[str, Rule]) -> Algorithm:
    """The algorithm, with metrics of what other rules would have made of the same uploads.

    `rules` are of lowrank.rules, by names of your own; of each, what it makes of factors is used,
    and not which side it trains. Metrics are `NAME_discrepancy`, `NAME_distance` and `NAME_loss`,
    also of the algorithm's own rule, under the name `applied`. In the first round the losses are of
    the model before it. The algorithm must upload a change of factors in one exchange; the server
    holds each rule's factors and the weights beside them. Raises ValueError otherwise.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    values.kind("rules", rules, Mapping, '{name: rule}, such as {"fedex": rules.FEDEX}')
    for name, rule in rules.items():
        values.kind(f"rules[{name!r}]", rule, Rule, "one of lowrank.rules, such as rules.FEDEX")
        if rule.partitioned:
            raise ValueError(
                f"rules[{name!r}] needs the ranks of clients; leave it out, or run it by fedlora"
            )
    if not rules or APPLIED in rules:
        raise ValueError(f"rules={list(rules)}: name one or more, none of them {APPLIED!r}")
    if not algorithm.sends_change or algorithm.task is None:
        raise ValueError("clients of this algorithm upload no change of a task's factors")
    task = algorithm.task

    def init(key):
        inner = algorithm.init(key)
        if not getattr(inner.theta, "factors", None):
            raise ValueError("no factors are trained to aggregate; select some with a rank")
        model = _model(inner.base, inner.theta.factors)
        return Counterfactual(inner, dict.fromkeys((*rules, APPLIED), model))

    def run_round(server, cohort, for_each_client):
        heard = []

        def verb(client, base, message, cohort):
            def scoring(known, message, k):
                base, full, models = known
                reply = client(base, message, k)
                losses = {f"{n}_loss": _loss(task, base, full, m, k) for n, m in models.items()}
                return reply._replace(metrics={**reply.metrics, **losses})

            known = base, server.theta.full, server.models
            reply = for_each_client(scoring, known, message, cohort)
            heard.append((base, message, reply.upload))
            return reply

        inner, states, metrics = algorithm.run_round(server.inner, cohort, verb)
        if len(heard) != 1:
            raise ValueError(f"a round has {len(heard)} exchanges; rules need one")
        models, whole, start = _others(rules, *heard[0], cohort)
        models[APPLIED] = _model(inner.base, inner.theta.factors)
        size = _distance(whole, start)
        size = jnp.where(size > 0, size, 1)
        weights = {name: _weights(m) for name, m in models.items()}
        found = {f"{n}_discrepancy": _distance(w, whole) / size for n, w in weights.items()}
        found |= {f"{n}_distance": _distance(weights[n], weights[APPLIED]) / size for n in rules}
        return Counterfactual(inner, models), states, {**metrics, **found}

    return algorithm._replace(
        init=init,
        init_client=lambda server, key: algorithm.init_client(server.inner, key),
        run_round=run_round,
        deploy=lambda server, state: algorithm.deploy(server.inner, state),
        broadcast=lambda server, t: algorithm.broadcast(server.inner, t),
    )


def _model(base: Mapping[str, jax.Array], factors: Mapping[str, Factors]) -> Model:
    return Model({p: base[p] for p in factors}, dict(factors))


def _weights(model: Model) -> dict[str, jax.Array]:
    return lowrank.merge(model.base, Theta({}, model.factors))


def _distance(x: PyTree, y: PyTree) -> jax.Array:
    return optax.tree.norm(optax.tree.sub(x, y))


def _others(
    rules: Mapping[str, Rule], base: PyTree, message: PyTree, upload: PyTree, cohort: Cohort
) -> tuple[dict[str, Model], dict[str, jax.Array], dict[str, jax.Array]]:
    """(each rule's model, W + M, W + s A B)."""
    trained = after_training(message, upload)  # [K, ...]
    theta = message.theta if hasattr(message, "theta") else message
    start = _model(base, theta.factors)
    mean = aggregate.weighted_mean(trained, cohort.weight)
    stack = {p: stacked(f, cohort.weight) for p, f in trained.items()}
    models = {
        name: Model(*applied(rule, start.base, mean, stack, cohort.round_key))
        for name, rule in rules.items()
    }
    return models, _weights(Model(start.base, stack)), _weights(start)


def _loss(task: Any, base: PyTree, full: PyTree, model: Model, k: Cohort) -> jax.Array:
    """The mean loss of a model over client k's examples, without training."""
    weights, theta = {**base, **model.base}, Theta(full, model.factors)

    def add(total, batch, key):
        return total + task.evaluate(weights, theta, batch)["loss"]

    once = local.Work(BATCH, epochs=1, shuffle=False)
    return local.each_step(add, jnp.zeros(()), k, once) / jnp.maximum(k.count, 1)
