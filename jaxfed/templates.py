"""Templates: clients that keep nothing; an averaging server with clients that do; two adapters.

In the last two, clients upload the change of theta, the shared part, and the server adds its mean.
A client's state never crosses the wire; each algorithm's file defines it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import local, lowrank, values
from jaxfed.algorithm import Algorithm, Client, PyTree
from jaxfed.lowrank import gates
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task, having


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen
    theta: PyTree  # trained, and shared


def keeps_nothing(server: Any, key: jax.Array) -> tuple:
    """The state of a client that keeps nothing."""
    return ()


def as_trained(server: Any, state: PyTree) -> tuple[PyTree, PyTree]:
    """The server's model (base, theta), deployed by every client."""
    return server.base, server.theta


def check_ranks(theta: Theta, ranks: Sequence[int] | None) -> None:
    """Raises ValueError unless theta has factors, and no client's rank is above theirs."""
    if not theta.factors:
        raise ValueError("no factors are trained to aggregate; select some with a rank")
    for p, f in theta.factors.items():
        if ranks is not None and max(ranks) > f.rank:
            raise ValueError(
                f"ranks has {max(ranks)}, but {p} has factors of rank {f.rank}; use at most that"
            )


def at_rank(
    theta: Theta, ranks: Sequence[int] | None, client: jax.Array
) -> tuple[Theta, jax.Array | None]:
    """(theta cut to the rank of a client, that rank), or (theta, None) without `ranks`."""
    if ranks is None:
        return theta, None
    rank = jnp.asarray(ranks, jnp.int32)[client]
    return lowrank.cut(theta, rank), rank


def stateless(task: Task, init: Callable, run_round: Callable, **declared: Any) -> Algorithm:
    """An algorithm whose clients keep nothing and deploy the server's model.

    The server has at least the fields of Server. `declared` are further fields of Algorithm, such
    as `broadcast`.
    """
    return Algorithm(init, keeps_nothing, run_round, as_trained, task, **declared)


def averaging(
    task: Task,
    client: Client,
    *,
    mean: Callable[[PyTree, jax.Array], PyTree],
    init_client: Callable = keeps_nothing,
    deploy: Callable = as_trained,
    init: Callable[[jax.Array], Any] | None = None,
) -> Algorithm:
    """An algorithm with FedAvg's server: theta <- theta + mean_k upload_k.

    `client(base, theta, k)` uploads its change of theta. `init(key)` gives the server, with at
    least these two fields; by default it is Server(*task.init(key)). Clients that keep a state say
    how it starts (`init_client`), and which model they deploy with it.
    """
    values.function("mean", mean, "a function of uploads and weights, such as weighted_mean")

    def begin(key):
        return Server(*task.init(key))

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), reply.state, reply.metrics

    return Algorithm(begin if init is None else init, init_client, run_round, deploy, task)


def two_adapters(
    task: Task,
    client: Client,
    *,
    rank: int,
    alpha: float | None,
    mean: Callable[[PyTree, jax.Array], PyTree],
    join: Callable[[Theta, Mapping[str, Factors]], Theta] = lowrank.joined,
) -> Algorithm:
    """`averaging` in which each client keeps a second adapter, of scale alpha / rank.

    The second adapter starts with a random down factor and a zero up factor, so a client's first
    model is the shared one. The client deploys join(theta, own).
    """
    check_number("rank", rank, 1)
    if alpha is not None:
        check_number("alpha", alpha, 0.0, above=True)

    def init_client(server, key):
        if not server.theta.factors:
            raise ValueError("no factors are trained to put an adapter beside; select some")
        return lowrank.beside(server.theta.factors, rank, key, alpha=alpha)

    def deploy(server, own):
        return server.base, join(server.theta, own)

    return averaging(task, client, init_client=init_client, deploy=deploy, mean=mean)


def mixture(
    theta: Theta, own: Mapping[str, Factors], w: jax.Array | float, w_own: jax.Array | float
) -> Theta:
    """Theta for W + w s A B + w_own s_own C D: the sum of both adapters; weights may be traced."""

    def weighed(factors, w):
        return {p: dataclasses.replace(f, b=w * f.b) for p, f in factors.items()}

    shared = theta._replace(factors=weighed(theta.factors, w))
    return lowrank.joined(shared, weighed(own, w_own))


class Instances(NamedTuple):
    """A client's deployed model whose two adapters are weighed for each example."""

    theta: Theta  # shared
    own: dict[str, Factors]
    seen: jax.Array  # [S, d] features of some of the client's training examples


def instance_wise(task: Task, a: float) -> Task:
    """The task, also of models `Instances`.

    Of an example x these have W + (1 - w(x)) s A B + w(x) s_own C D. There w(x) is the mean of
    a cos(e(x), e_i) over the e_i in `seen`, and e the features of the model with the client's
    adapter alone (FedDPA, arXiv 2403.19211). Zeros in `seen` count as a cosine of zero.
    """
    features = having(task, "features")

    def weighed(run):
        def weighing(base, model, batch, *key):
            if not isinstance(model, Instances):
                return run(base, model, batch, *key)
            theta, own, seen = model
            e = features(base, theta._replace(factors=own), batch)  # [B, d]
            w = a * jnp.mean(_unit(e) @ _unit(seen).T, axis=1)  # [B]
            mixed = gates.weighed(theta, own, jnp.stack([1 - w, w], axis=-1))
            return run(base, mixed, batch, *key)

        return run and weighing

    changed = {name: weighed(getattr(task, name)) for name in ("loss", "evaluate", "predict")}
    return task._replace(**changed, features=None)


def _unit(x: jax.Array) -> jax.Array:
    """The rows [n, d], of length one; zeros stay."""
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)


def nothing_seen(task: Task, base: PyTree, theta: Theta, examples: int) -> jax.Array:
    """Zeros [examples, d] in place of features."""
    batch = {**having(task, "example")(), "mask": jnp.ones(1)}
    one = jax.eval_shape(having(task, "features"), base, theta, batch)
    return jnp.zeros((examples, *one.shape[1:]), one.dtype)


def features_of_some(task: Task, base: PyTree, theta: Theta, k, examples: int) -> jax.Array:
    """Features [examples, d] of so many of client k's training examples, drawn with repetition."""
    place = jax.random.randint(local.again(k, 3).key, (examples,), 0, jnp.maximum(k.count, 1))
    return having(task, "features")(base, theta, {**k.data.at(place), "mask": jnp.ones(examples)})


def alone(
    optimizer: optax.GradientTransformation, trains_b: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """The optimizer of one side of the factors: B in rounds with trains_b(round), A in the others.

    The other side gets no gradient and no update, as from moments or weight decay.
    """

    def update(updates, state, params=None, **extra):
        b = trains_b(extra["round"])
        factors = {
            p: dataclasses.replace(f, a=jnp.where(b, 0, f.a), b=jnp.where(b, f.b, 0))
            for p, f in updates.factors.items()
        }
        return updates._replace(factors=factors), state

    frozen = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    return optax.chain(frozen, optimizer, frozen)


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raises ValueError if a number is not finite and in [low, high], or (low, high] with `above`.

    If `low` is an int, the number must be whole. Raises TypeError if it is of another type. Traced
    numbers are not checked.
    """
    if isinstance(value, jax.Array):
        return
    if isinstance(low, int):
        values.whole(name, value, low)
        return
    values.number(name, value, low, high)
    if above and value == low:
        raise ValueError(f"{name}={value}; use a finite number above {low:g}")
