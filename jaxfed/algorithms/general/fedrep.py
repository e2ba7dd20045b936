"""FedRep: Collins et al., ICML 2021 (arXiv 2102.07089), Algorithm 1: FedPer in two local phases.

client k of the cohort, from the server's body phi and its own head h_k:
    h_k   <- local training of f_k(h_k, phi), phi fixed
    phi_k <- local training of f_k(h_k, phi), h_k fixed          uploads phi_k - phi
phi <- mean_k phi_k;  h_k stays on the client
"""

from collections.abc import Callable

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.algorithms.general.fedper import State, fedper, united
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging


def fedrep(
    task: Task,
    work: local.Work,
    *,
    personal: str,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    common_start: bool = False,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """FedPer whose clients train the head first, then the body.

    The record's loss is that of the second phase.

    Args:
        task: the model and its loss f_k.
        work: local work on the body phi in each round; the paper's theory takes one step.
        personal: a pattern on the paths of the leaves of theta that are the head; as in fedper.
        personal_work: local work on the head in each round; the paper takes many steps.
        client_optimizer: of the body; restarted in each round.
        personal_optimizer: of the head, likewise.
        common_start: True if all clients' heads start alike; as in fedper.
        mean: of the uploads; uniform by default, as in the paper.
    """
    parts = fedper(
        task, work, personal=personal, client_optimizer=client_optimizer, common_start=common_start
    )
    local.accepting(personal_optimizer, "personal_optimizer")

    def client(base, shared, k):
        def loss_of_head(own, batch, key):
            return task.loss(base, united(shared, own), batch, key)

        def loss_of_body(shared, batch, key):
            return task.loss(base, united(shared, head), batch, key)

        head, _ = local.sgd(
            loss_of_head, personal_optimizer, k.state.own, local.again(k, 1), personal_work
        )
        body, metrics = local.sgd(loss_of_body, client_optimizer, shared, k, work)
        return Reply(optax.tree.sub(body, shared), State(head, ()), metrics)

    return averaging(
        task,
        client,
        init=parts.init,
        init_client=parts.init_client,
        deploy=parts.deploy,
        mean=mean,
    )
