"""FLASC: Kuo et al., arXiv 2406.05233: clients train dense factors, and both ways are sparse.

    down: the largest entries of theta, a share `down` of all;   up: the largest of the change, `up`

The change counts from the sparse theta that the client received, as in the authors' code.
"""

from collections.abc import Callable

import jax

from jaxfed import trees, values
from jaxfed.algorithm import Algorithm, PyTree, check_may_change
from jaxfed.combine import compress


def flasc(algorithm: Algorithm, *, down: float, up: float) -> Algorithm:
    """The algorithm with message and upload cut to shares `down` and `up` of their entries.

    Shares are from 0 to 1, over the whole tree; 1 sends all of it. Running statistics are not cut.
    The algorithm must send theta and upload its change, as fedavg and fedopt do; else ValueError.
    Clients declare the bytes of the entries and of their positions. A client deploys the sparse
    theta; the server keeps the dense one.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    check_may_change(algorithm, "a sparse upload")
    cut_down, cut_up = (_cut(name, share) for name, share in (("down", down), ("up", up)))

    def run_round(server, cohort, for_each_client):
        form = trees.shapes(server.theta)

        def verb(client, base, message, inner):
            compress.check_form(message, form, "receive")
            sparse, received = cut_down(message)

            def cutting(base, message, k):
                reply = client(base, message, k)
                compress.check_form(reply.upload, form, "upload")
                upload, sent = cut_up(reply.upload)
                return reply._replace(upload=upload, received=received, sent=sent)

            return for_each_client(cutting, base, sparse, inner)

        return algorithm.run_round(server, cohort, verb)

    def deploy(server, state):
        base, theta = algorithm.deploy(server, state)
        return base, cut_down(theta)[0]

    return algorithm._replace(run_round=run_round, deploy=deploy)


def _cut(name: str, share: float) -> Callable[[PyTree], tuple[PyTree, PyTree]]:
    """tree -> (its largest entries, bytes)."""
    values.number(name, share, 0.0, 1.0)
    if share == 1:
        return lambda tree: (tree, trees.nbytes(tree))
    cut = compress.with_whole_statistics(compress.top(share))
    return lambda tree: cut(tree, jax.random.key(0))
