"""Random keys in what a server or a client keeps, held as the numbers that they are made of.

Checkpoints, rows of bytes and transfers take numbers. Inside a round the algorithm sees its keys.
"""

from typing import Any

import jax

from jaxfed.algorithm import Algorithm, PyTree


def as_numbers(algorithm: Algorithm) -> Algorithm:
    """The algorithm with uint32 arrays in place of the keys that its server and clients keep.

    An algorithm without keys is returned as it is.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    server = jax.eval_shape(algorithm.init, key)
    state = jax.eval_shape(algorithm.init_client, server, key)
    if not any(map(_is_key, jax.tree.leaves((server, state)))):
        return algorithm

    def init(key):
        return numbers(algorithm.init(key))

    def init_client(held, key):
        return numbers(algorithm.init_client(keys(held, server), key))

    def run_round(held, cohort, for_each_client):
        cohort = cohort._replace(state=keys(cohort.state, state))
        found, states, metrics = algorithm.run_round(keys(held, server), cohort, for_each_client)
        return numbers(found), numbers(states), metrics

    def deploy(held, kept):
        return algorithm.deploy(keys(held, server), keys(kept, state))

    return algorithm._replace(
        init=init, init_client=init_client, run_round=run_round, deploy=deploy
    )


def numbers(tree: PyTree) -> PyTree:
    """The tree with each key's numbers in its place."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def keys(tree: PyTree, like: PyTree) -> PyTree:
    """The tree with keys again where `like` has them, of the same kind."""
    return jax.tree.map(
        lambda x, kind: (
            jax.random.wrap_key_data(x, impl=_implementation(kind)) if _is_key(kind) else x
        ),
        tree,
        like,
    )


def _implementation(kind: jax.ShapeDtypeStruct) -> Any:
    """The generator of a key that is known by its shape and dtype."""
    found: list = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), kind)
    return found[0]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
