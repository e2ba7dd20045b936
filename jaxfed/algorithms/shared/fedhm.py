"""FedHM: Yao et al., arXiv 2111.14655: a whole model on the server, factors on the clients.

    server:   A, B <- the best factors of W of rank r, sqrt of the singular values on either side
    client k: trains the first r_k components of A and B in W's place, and uploads them
    W <- s sum_k p_k A_k B_k

A convolution k x k is the matrix [k in, k out] (`forms.SEPARABLE`), as in the authors' code.
Clients may add the decay of the product, lambda/2 ||s A B||^2, to their loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import optax

from jaxfed import aggregate, local, lowrank, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.combine.forms import formed
from jaxfed.lowrank import forms
from jaxfed.lowrank.factors import Theta
from jaxfed.lowrank.rules import stacked
from jaxfed.tasks.task import Task
from jaxfed.templates import at_rank, check_ranks, keeps_nothing


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen; without the weights that have factors
    theta: Theta  # trained: the best factors of `whole`
    whole: dict[str, jax.Array]  # W, as `forms.reshaped` has it


def fedhm(
    task: Task,
    work: local.Work,
    *,
    client_optimizer: optax.GradientTransformation,
    ranks: Sequence[int] | None = None,
    decay: float = 0.0,
) -> Algorithm:
    """FedHM over the weights with factors; the others that are trained are averaged.

    The server's whole W is what is deployed. Clients keep nothing, and multiply by the factors
    alone.

    Args:
        task: the model and its loss, which takes a base without the weights that have factors, as
            jaxfed's own tasks do; the task's factors tell paths and r. W begins at their product
            plus the weight that they stand beside.
        work: local work of a client in each round.
        client_optimizer: of the local steps; restarted in each round.
        ranks: r_k of each client of the population; None trains all r components.
        decay: lambda, the weight of the products' decay.
    """
    local.accepting(client_optimizer)
    values.number("decay", decay, 0.0)
    if ranks is not None:
        values.wholes("ranks", ranks, 1)
    inner = formed(task, forms.SEPARABLE)

    def each(function, theta, *weights):
        factors = theta.factors.items()
        return {p: lowrank.each_layer(function, f, *(w[p] for w in weights)) for p, f in factors}

    def best(theta, whole):
        def one(f, w):
            return lowrank.from_product(w, f.a.ndim - 1, f.rank, f.scale)

        return theta._replace(factors=each(one, theta, whole))

    def init(key):
        base, theta = inner.init(key)
        check_ranks(theta, ranks)
        lowrank.quantised.refuse({p: base[p] for p in theta.factors}, "FedHM")
        begun = each(lambda f, w: forms.reshaped(w).astype(f.a.dtype), theta, base)
        whole = lowrank.merge(begun, theta)
        rest = {p: w for p, w in base.items() if p not in whole}
        return Server(rest, best(theta, whole), whole)

    def client(base, theta, k):
        start, rank = at_rank(theta, ranks, k.id)

        def loss(theta, batch, key):
            value = inner.loss(base, theta, batch, key)
            if not decay:
                return value
            squares = sum(lowrank.inner(f, f) for f in theta.factors.values())
            return value + decay / 2 * squares

        trained, metrics = local.sgd(loss, client_optimizer, start, k, work)
        size = lowrank.nbytes(theta, rank)
        return Reply(trained, (), metrics, received=size, sent=size)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        mean = aggregate.weighted_mean(reply.upload, cohort.weight)
        whole = {
            p: lowrank.product(stacked(f, cohort.weight)) for p, f in reply.upload.factors.items()
        }
        return Server(server.base, best(mean, whole), whole), reply.state, reply.metrics

    def deploy(server, state):
        weights = each(lambda f, w: forms.restored(w), server.theta, server.whole)
        return {**server.base, **weights}, Theta(server.theta.full, {})

    return Algorithm(
        init,
        keeps_nothing,
        run_round,
        deploy,
        task,
        clients=None if ranks is None else len(ranks),
        sends_change=False,
    )
