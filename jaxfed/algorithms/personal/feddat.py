"""FedDAT: Chen et al., AAAI 2024 (arXiv 2308.12305): two adapters that teach each other.

    client k of the cohort, from the server's adapter g, of which f is a frozen copy, and its own l:
        z_g = logits with g;  z_m = logits with (f + l) / 2, the dual adapter teacher
        g, l <- local training, one optimizer for both, of
            (F_k(g) + c KL(z_m || z_g)) / 2            z_m constant; trains g
          + (F_k((f + l) / 2) + c KL(z_g || z_m)) / 2  z_g constant; trains l
        uploads the change of g; l stays
    g <- mean_k g_k

(f + l) / 2 halves both adapters' outputs, and KL(p || q) is T^2 KL(softmax(p/T) || softmax(q/T)).

The paper's adapters are bottlenecks, here they are low-rank factors. As in the authors' code, one
optimizer steps both, and l is trained inside the mixture. There the two losses take a step each,
one after the other; here they share one, which differs for weights trained whole alone. Those are
shared, and both losses train them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task, having, without_running
from jaxfed.templates import check_number, mixture, two_adapters


def feddat(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    alpha: float | None = None,
    distillation: float,
    temperature: float,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedDAT; each client keeps a local adapter of the given `rank`, and deploys the mixture.

    The task needs `predict`. The record's loss is F_k(g) + F_k((f + l) / 2) and both divergences,
    halved as above.

    Args:
        task: the model and its loss F_k, a classification, also of each token: then an example's
            divergence is the mean over its positions, padding included.
        work: local work in each round.
        rank: of the local adapter.
        alpha: the local adapter has scale alpha / rank; 1 by default.
        distillation: c, the weight of the divergences; the paper: 1.
        temperature: T, above 0; the authors' code: 3.
        client_optimizer: of both adapters; restarted in each round.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("distillation", distillation, 0.0)
    check_number("temperature", temperature, 0.0, above=True)
    predict = having(task, "predict")
    task = without_running(task, "FedDAT's losses, of predictions, do not move them")

    def join(theta, own):
        return mixture(theta, own, 0.5, 0.5)

    def divergence(teacher, student, mask):
        p, q = (jax.nn.log_softmax(z / temperature) for z in (teacher, student))
        each = temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)  # [B, ...]
        each = jnp.mean(each.reshape(len(mask), -1), axis=1)  # [B]
        return jnp.sum(each * mask) / jnp.maximum(jnp.sum(mask), 1)

    def client(base, theta, k):
        def loss(both, batch, key):
            new, own = both
            teacher = join(new._replace(factors=theta.factors), own)
            z_g, z_m = (predict(base, x, batch, key) for x in (new, teacher))
            constant_g, constant_m = jax.lax.stop_gradient((z_g, z_m))
            apart = divergence(constant_m, z_g, batch["mask"])
            apart += divergence(constant_g, z_m, batch["mask"])
            fit = task.loss(base, new, batch, key) + task.loss(base, teacher, batch, key)
            return (fit + distillation * apart) / 2

        (new, own), metrics = local.sgd(loss, client_optimizer, (theta, k.state), k, work)
        return Reply(optax.tree.sub(new, theta), own, metrics)

    return two_adapters(task, client, rank=rank, alpha=alpha, mean=mean, join=join)
