"""SA-FedLoRA: Yang et al., arXiv 2405.09394: the whole model first, then factors of falling rank.

    initiating: clients train all weights with the penalty mu/2 |w - w_t|^2, and the server averages
    annealing:  clients train A and B of rank r_t, and the server averages each
                r_t falls from r to `least`:  A, B <- the best r_t components of A B at each fall

THE SCHEDULE IS OURS, as we could not read the paper's:  with x from 0 to 1 over the annealing,

    r_t = round(least + (r - least) (1 + cos(pi x)) / 2)
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, trees, values
from jaxfed.algorithm import Algorithm, Reply, no_broadcast
from jaxfed.algorithms.general.fedprox import pull
from jaxfed.lowrank.factors import Theta
from jaxfed.lowrank.rules import truncated
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, check_number, stateless


def sa_fedlora(
    task: Task,
    work: local.Work,
    *,
    initiating: int,
    rounds: int,
    least: int,
    mu: float,
    client_optimizer: optax.GradientTransformation,
) -> Algorithm:
    """SA-FedLoRA; clients keep nothing. A client declares the r_t components that cross.

    When the annealing begins, every client must receive the weights, which change no more.

    Args:
        task: the model and its loss; its factors, all of one rank r, add nothing at first.
        work: local work of a client in each round.
        initiating: how many rounds train the whole model.
        rounds: of the run; the rank falls until the last one.
        least: the rank of the last round, from 1 to r.
        mu: weight of the penalty in the first rounds.
        client_optimizer: of the local steps; restarted in each round.
    """
    values.whole("initiating", initiating, 0)
    if values.whole("rounds", rounds, 1) <= initiating:
        raise ValueError(f"rounds={rounds} leaves none after initiating={initiating}; run more")
    values.whole("least", least, 1)
    check_number("mu", mu, 0.0)
    near = optax.chain(pull(mu), local.accepting(client_optimizer))

    def init(key):
        server = Server(*task.init(key))
        lowrank.quantised.refuse(server.base if initiating else {}, "training it")
        ranks = {p: f.rank for p, f in server.theta.factors.items()}
        if len(set(ranks.values())) != 1 or least > min(ranks.values()):
            raise ValueError(
                f"the task's factors have ranks {ranks}; select one rank, at least least={least}"
            )
        return server

    def budget(most, t):
        x = jnp.clip((t - initiating) / max(rounds - initiating - 1, 1), 0, 1)
        return jnp.round(least + (most - least) * (1 + jnp.cos(jnp.pi * x)) / 2).astype(jnp.int32)

    def whole(factors, message, k):
        def loss(message, batch, key):
            base, full = message
            return task.loss(base, Theta(full, factors), batch, key)

        trained, metrics = local.sgd(loss, near, message, k, work)
        return Reply(optax.tree.sub(trained, message), (), metrics)

    def low(base, theta, k):
        trained, metrics = local.sgd(partial(task.loss, base), client_optimizer, theta, k, work)
        size = lowrank.nbytes(theta, budget(_rank(theta), k.round))
        once = trees.nbytes_if(k.round == initiating, base) if initiating else {}
        return Reply(optax.tree.sub(trained, theta), (), metrics, (size, once), size)

    def run_round(server, cohort, for_each_client):
        base, theta = server
        t = cohort.round

        def initiate(base, theta):
            message = base, theta.full
            reply = for_each_client(whole, theta.factors, message, cohort)
            mean = aggregate.weighted_mean(reply.upload, cohort.weight)
            base, full = optax.tree.add(message, mean)
            return base, theta._replace(full=full), reply.metrics

        def anneal(base, theta):
            rank = budget(_rank(theta), t)
            falls = (t > initiating) & (rank < budget(_rank(theta), t - 1))

            def fewer(theta):
                ordered = {
                    p: truncated(f, f.rank, cohort.round_key) for p, f in theta.factors.items()
                }
                return lowrank.cut(theta._replace(factors=ordered), rank)

            theta = jax.lax.cond(falls, fewer, lambda theta: theta, theta)
            reply = for_each_client(low, base, theta, cohort)
            mean = aggregate.weighted_mean(reply.upload, cohort.weight)
            return base, optax.tree.add(theta, mean), reply.metrics

        base, theta, metrics = jax.lax.cond(t < initiating, initiate, anneal, base, theta)
        return Server(base, theta), (), metrics

    def ended(server, t):
        return trees.nbytes(server.base) if t == initiating else 0

    return stateless(task, init, run_round, broadcast=ended if initiating else no_broadcast)


def _rank(theta: Theta) -> int:
    return next(iter(theta.factors.values())).rank
