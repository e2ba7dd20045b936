"""Placements of clients' states during a run: on the devices, or moved there for each round."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.simulation import engine
from jaxfed.simulation.population.rows import Layout, Rows

NEVER = 2**32 - 1  # a round that is never reached; its key makes the first states


def first_states(
    init_client: Callable, server: Callable[[], Any], width: int, seed: int, machine: engine.Machine
) -> Callable[[np.ndarray], PyTree]:
    """ids [n] -> states [n, ...] on the devices: these clients' states before they are first drawn.

    `server()` is the server before the first round; only the leaves that init_client reads are
    kept. One program computes `width` clients at once, so a client always gets the same bits.
    """
    shapes = jax.eval_shape(server)
    leaves, structure = jax.tree.flatten(shapes)
    read = _read_leaves(init_client, shapes)
    whole = jax.tree.leaves(server()) if any(read) else leaves
    kept = [np.array(x) if r else None for x, r in zip(whole, read, strict=True)]

    def make(kept, ids):
        filled = [
            jnp.zeros(x.shape, x.dtype) if k is None else k
            for x, k in zip(leaves, kept, strict=True)
        ]
        root = jax.random.fold_in(jax.random.key(seed), np.uint32(NEVER))
        keys = jax.vmap(partial(jax.random.fold_in, root))(ids)
        return jax.vmap(init_client, in_axes=(None, 0))(jax.tree.unflatten(structure, filled), keys)

    make_piece = partial(engine.compiled(make, machine), engine.place(kept, machine))

    def first(ids):
        made = [make_piece(filled_up(piece, width, piece[0])) for piece in pieces(ids, width)]
        if len(ids) == width:
            return made[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(ids)], *made)

    return first


def _read_leaves(init_client: Callable, server: PyTree) -> list[bool]:
    """True for each leaf of the server whose values, not only its shape, init_client reads."""
    jaxpr = jax.make_jaxpr(init_client)(server, jax.random.key(0)).jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    read |= {id(v) for v in jaxpr.outvars}
    return [id(v) in read for v in jaxpr.invars[: len(jax.tree.leaves(server))]]


def pieces(ids: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """The ids in consecutive pieces of `width`; the last may be shorter."""
    return (ids[i : i + width] for i in range(0, len(ids), width))


def filled_up(ids: np.ndarray, width: int, spare: int) -> np.ndarray:
    """The ids as [width], with `spare` in the remaining places."""
    return np.pad(ids, (0, width - len(ids)), constant_values=spare).astype(np.int32)


class Placement(Protocol):
    """A placement of all clients' states, which it lends to the rounds of a plan."""

    @property
    def moves(self) -> bool:
        """True if states move to the devices for each round, so a call can run only one round."""

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        """(states on the devices, the plan with its slots pointing into them)."""

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        """Takes back the states after the rounds of the plan, which may still be running."""

    def settle(self) -> None:
        """Writes states that were taken back but not yet stored."""

    def states_of(self, ids: np.ndarray) -> PyTree:
        """The states [n, ...] of these clients on the devices; ids from N up are padding."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The states of these clients as rows [n, nbytes]."""

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Replaces the states of these clients by rows [n, nbytes]."""

    def clear(self) -> None:
        """Resets all clients to their first states."""

    def close(self) -> None:
        """Releases files; states in memory remain readable."""


class OnDevice:
    """All clients' states, stacked [N, ...] on the devices."""

    moves = False

    def __init__(self, layout: Layout, first: Callable, clients: int, width: int, machine):
        self.layout, self.first, self.clients, self.width = layout, first, clients, width
        self.take = engine.compiled(_take, machine)
        self.set = engine.compiled(_set, machine, donate=(0,))
        empty = [jnp.zeros((clients, *x.shape), x.dtype) for x in layout.leaves]
        self.states = engine.place(jax.tree.unflatten(layout.structure, empty), machine)
        self.clear()

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        """(the states of all N clients, the plan as it is)."""
        return self.states, plan

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        """Replaces the states of all N clients."""
        self.states = states

    def settle(self) -> None:
        """Does nothing: all states are already stored."""

    def states_of(self, ids: np.ndarray) -> PyTree:
        """The states [n, ...] of these clients; padding gets the last client's."""
        return self.take(self.states, ids.astype(np.int32))

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The rows [n, nbytes] of at most `width` clients."""
        states = self.states_of(filled_up(ids, self.width, self.clients))
        return self.layout.rows(jax.device_get(states))[: len(ids)]

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Replaces the states of at most `width` clients."""
        spare = np.zeros((self.width - len(ids), self.layout.nbytes), np.uint8)
        states = self.layout.states(np.concatenate([rows, spare]))
        self._set(ids, states)

    def clear(self) -> None:
        """Computes all first states again, `width` clients at a time."""
        if self.layout.nbytes:
            for ids in pieces(np.arange(self.clients), self.width):
                self._set(ids, self.first(filled_up(ids, self.width, 0)))

    def close(self) -> None:
        """Does nothing: the states remain readable."""

    def _set(self, ids: np.ndarray, states: PyTree) -> None:
        self.states = self.set(self.states, filled_up(ids, self.width, self.clients), states)


class Moving:
    """Rows in host memory or in a file; only the cohort's states are on the devices."""

    moves = True

    def __init__(self, layout: Layout, first: Callable, rows: Rows, machine):
        self.layout, self.first, self.rows = layout, first, rows
        self.clients = len(rows.row)
        self.select = engine.compiled(_select, machine)
        self.reply: tuple[np.ndarray, PyTree] | None = None  # ids and states to write

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        """(the states of the cohort [K, ...], the plan with slots 0 ... K - 1)."""
        places = np.arange(plan.id.shape[1], dtype=np.int32)
        return self._stack(plan.id[0]), plan._replace(slot=places[None])

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        """Holds the cohort's states, and writes those of the round before while this one runs."""
        self.settle()  # the previous round has ended, and this one is running
        self.reply = (plan.id[0], states)

    def states_of(self, ids: np.ndarray) -> PyTree:
        """The states [n, ...] of these clients; padding gets those of another client."""
        self.settle()
        return self._stack(ids)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The rows [n, nbytes] of clients that have one."""
        self.settle()
        return self.rows.read(ids)

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Replaces the rows of these clients."""
        self.rows.write(ids, rows)

    def settle(self) -> None:
        """Writes the last reply to its rows, after waiting for the devices if necessary."""
        if self.reply is not None:
            (ids, states), self.reply = self.reply, None
            present = ids < self.clients
            self.rows.write(ids[present], self.layout.rows(jax.device_get(states))[present])

    def clear(self) -> None:
        """Removes all rows; first states are computed again when needed."""
        self.reply = None
        self.rows.clear()

    def close(self) -> None:
        """Closes the rows; a last reply that is not written is lost."""
        self.reply = None
        self.rows.close()

    def _stack(self, ids: np.ndarray) -> PyTree:
        """States [n, ...] on the devices: from the last reply, from rows, or first states.

        A padded place gets the state of one of these clients.
        """
        ids = np.where(ids < self.clients, ids, ids.min())
        drawn, reply = self.reply or (np.zeros(0, np.int32), None)
        place = {k: i for i, k in enumerate(drawn.tolist())}
        replied = np.array([place.get(k, -1) for k in ids.tolist()], np.int32)
        stored = (replied < 0) & self.rows.has(ids)
        rows = np.zeros((len(ids), self.layout.nbytes), np.uint8)
        rows[stored] = self.rows.read(ids[stored])
        source, stacks = np.arange(len(ids), dtype=np.int32), [self.layout.states(rows)]
        if (replied >= 0).any():
            source = np.where(replied >= 0, len(ids) + replied, source)
            stacks.append(reply)
        fresh = (replied < 0) & ~stored
        if fresh.any():
            begin = sum(len(jax.tree.leaves(s)[0]) for s in stacks)
            source = np.where(fresh, begin + np.arange(len(ids), dtype=np.int32), source)
            stacks.append(self.first(ids))
        return self.select(stacks, source)


def _take(states: PyTree, ids: jax.Array) -> PyTree:
    return jax.tree.map(lambda s: s.at[ids].get(mode="clip"), states)


def _set(states: PyTree, ids: jax.Array, new: PyTree) -> PyTree:
    return jax.tree.map(lambda s, n: s.at[ids].set(n, mode="drop"), states, new)


def _select(stacks: list[PyTree], source: jax.Array) -> PyTree:
    """Rows `source` [n] of the concatenated stacks."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[source], *stacks)
