"""The engine: many clients at once, on one device or many. Every word about devices stands here.

Within a device, clients are an array axis (vmap), `chunk` of them at a time. Across the devices of
one process the axis is split by pmap; across processes by shard_map over a global mesh. A whole
round, or several, is one jitted call that donates the server and the clients' kept states.

The engine knows no algorithm, model or data set, and the meaning of no leaf.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfed import algorithm as contract
from jaxfed.algorithm import Algorithm, Cohort, Data, ForEachClient, Leaf, PyTree
from jaxfed.simulation import account

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Which devices clients run on, and how many are vmapped at once on each (None: all)."""

    devices: tuple[jax.Device, ...]
    chunk: int | None = None

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def several_processes(self) -> bool:
        return len({d.process_index for d in self.devices}) > 1

    @property
    def sharing(self) -> int:
        """How many devices share one memory: all of a CPU's."""
        return len(self.devices) if self.devices[0].platform == "cpu" else 1


def machine(devices: int | None = None, chunk: int | None = None) -> Machine:
    """The first `devices` of all the processes' devices (None: every one)."""
    found = jax.devices()
    if devices is not None and not 1 <= devices <= len(found):
        raise ValueError(
            f"devices={devices}, but JAX sees {len(found)}; on a CPU ask for more with "
            "--cpu-devices, or jax.config.update('jax_num_cpu_devices', n) before anything else"
        )
    if len({d.process_index for d in found[:devices]}) < jax.process_count():
        raise ValueError(
            f"devices={devices} leaves some of the {jax.process_count()} processes without one; "
            "leave it out, so that each uses its own"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} would run no client; use at least 1, or None for all")
    return Machine(tuple(found[:devices]), chunk)


def for_each_client(machine: Machine, *, uniform: bool = False) -> ForEachClient:
    """The verb on this machine: (client, base, message, cohort) -> Reply with leaves [K, ...].

    Any K will do: places are filled up to a multiple of the devices, and nothing of them comes
    back. `uniform` promises that all clients have equally many examples: then every client runs the
    same number of local steps, and none idles while another finishes. Each reply's Account is among
    its metrics. Raises ValueError for a metric whose name is reserved.
    """

    def verb(client, base, message, cohort):
        _check_closure(client)
        clients, devices = cohort.id.shape[0], len(machine.devices)
        cohort = _filled_up(cohort, -clients % devices)
        axes = contract.axes(cohort)
        if uniform:
            cohort, axes = cohort._replace(count=cohort.count[0]), axes._replace(count=None)
        mapped = partial(_map_clients, partial(account.noted, client), axes, machine.chunk)
        if devices == 1:
            reply = mapped(base, message, cohort)
        elif machine.several_processes:
            specs = _specs(axes, cohort)
            reply = jax.shard_map(
                mapped,
                mesh=machine.mesh,
                in_specs=(PartitionSpec(), PartitionSpec(), specs),
                out_specs=PartitionSpec(AXIS),
                check_vma=False,  # else gradients of replicated inputs are summed over devices
            )(base, message, cohort)
        else:
            split = _on_axis(axes, lambda x: x.reshape(devices, -1, *x.shape[1:]), cohort)
            parallel = jax.pmap(
                mapped, in_axes=(None, None, axes), axis_name=AXIS, devices=list(machine.devices)
            )
            reply = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), parallel(base, message, split)
            )
        return reply if clients % devices == 0 else jax.tree.map(lambda x: x[:clients], reply)

    return verb


def _filled_up(cohort: Cohort, spare: int) -> Cohort:
    """The cohort with `spare` more places at its end: the first client again, without examples."""
    if not spare:
        return cohort

    def longer(x):
        return jnp.concatenate([x, jnp.broadcast_to(x[:1], (spare, *x.shape[1:]))])

    real = jnp.arange(len(cohort.count) + spare) < len(cohort.count)
    filled = contract.on_axis(longer, cohort)
    return filled._replace(count=jnp.where(real, filled.count, 0))


def _on_axis(axes: Cohort, function: Callable, cohort: Cohort) -> Cohort:
    """The cohort with `function` applied to the arrays that run over clients."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(function, part),
        axes,
        cohort,
        is_leaf=lambda x: x is None,
    )


def _specs(axes: Cohort, cohort: Cohort) -> Cohort:
    return jax.tree.map(
        lambda axis, part: jax.tree.map(
            lambda _: PartitionSpec() if axis is None else PartitionSpec(AXIS), part
        ),
        axes,
        cohort,
        is_leaf=lambda x: x is None,
    )


def _map_clients(client, axes: Cohort, chunk: int | None, base, message, cohort):
    """client over the cohort's axis: all at once, or `chunk` at a time."""
    one = partial(client, base, message)
    here = cohort.id.shape[0]
    if chunk is None or chunk >= here:
        return jax.vmap(one, in_axes=(axes,))(cohort)
    shared = {"is_leaf": lambda x: x is None}
    mapped = jax.tree.map(lambda axis, part: None if axis is None else part, axes, cohort, **shared)

    def rejoin(mine):
        return one(
            jax.tree.map(
                lambda axis, part, whole: whole if axis is None else part,
                axes,
                mine,
                cohort,
                **shared,
            )
        )

    return jax.lax.map(rejoin, mapped, batch_size=chunk)


def _check_closure(client: Callable) -> None:
    """Raises TypeError if the client's procedure closes over an array: pmap could not run it."""
    while isinstance(client, partial):
        client = client.func
    for name, value in inspect.getclosurevars(client).nonlocals.items():
        leaves = jax.tree.leaves(value)
        if any(isinstance(x, jax.Array | np.ndarray) for x in leaves):
            raise TypeError(
                f"the client procedure {client.__qualname__} closes over the array {name!r}; "
                "arrays travel in base, message or k, or else they do not reach every device"
            )


class Plan(NamedTuple):
    """Who is drawn, for R rounds at once; made by the host from (seed, round) alone."""

    round: Leaf  # [R]
    id: Leaf  # [R, K]
    slot: Leaf  # [R, K] where in `states` the client's kept state stands
    start: Leaf  # [R, K] its first row in `examples`
    count: Leaf  # [R, K] its number of rows
    weight: Leaf  # [R, K] its share in the average; they sum to one in a round


def rounds(algorithm: Algorithm, verb: ForEachClient, seed: int, most: int) -> Callable:
    """(server, states, examples, plan) -> (server, states, metrics [R, ...]): R rounds in one call.

    Not jitted yet; see `compiled`. All randomness comes from (seed, round, client id) by fold_in,
    and none of it is kept, so a round is a function of its number. The metrics have an Account.
    """

    def one_round(examples, carry, plan):
        server, states = carry
        here = cohort(states, examples, plan, seed, most)
        server, new, metrics = account.run_round(algorithm, server, here, verb)
        states = jax.tree.map(lambda s, n: s.at[plan.slot].set(n, mode="drop"), states, new)
        return (server, states), metrics

    def run(server, states, examples, plan):
        step = partial(one_round, examples)
        if plan.round.shape[0] == 1:  # no loop around it: convolutions are faster outside
            carry, metrics = step((server, states), jax.tree.map(lambda x: x[0], plan))
            return *carry, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        carry, metrics = jax.lax.scan(step, (server, states), plan)
        return *carry, metrics

    return run


def cohort(states: PyTree, examples: PyTree, plan: Plan, seed: int, most: int) -> Cohort:
    """The cohort of one round of the plan (its fields [K], its round a scalar)."""
    key = jax.random.fold_in(jax.random.key(seed), plan.round)
    clients_key, round_key = jax.random.split(key)
    return Cohort(
        state=jax.tree.map(lambda s: s.at[plan.slot].get(mode="clip"), states),
        data=Data(examples, plan.start, most),
        count=plan.count,
        weight=jnp.asarray(plan.weight, float),
        key=jax.vmap(partial(jax.random.fold_in, clients_key))(plan.id),
        id=plan.id,
        round=plan.round,
        round_key=round_key,
    )


def compiled(
    function: Callable, machine: Machine, donate: tuple[int, ...] = ()
) -> jax.stages.Wrapped:
    """`function` jitted for this machine; its results are whole on every device.

    For `rounds(...)`, donate (0, 1): server and states are then updated in place.
    """
    if len(machine.devices) == 1:
        return jax.jit(function, donate_argnums=donate)
    whole = NamedSharding(machine.mesh, PartitionSpec())
    return jax.jit(function, donate_argnums=donate, out_shardings=whole)


def place(tree: PyTree, machine: Machine) -> PyTree:
    """The tree on every device of the machine, as `compiled` expects it."""
    if len(machine.devices) == 1:
        return jax.device_put(tree, machine.devices[0])
    return jax.device_put(tree, NamedSharding(machine.mesh, PartitionSpec()))


def distinct(tree: PyTree) -> PyTree:
    """The tree with a copy of every array that stands in it twice: only then can it be donated."""
    seen: set[int] = set()

    def own(leaf: Leaf) -> Leaf:
        again = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if again else leaf

    return jax.tree.map(own, tree)


def largest(value: float, machine: Machine) -> float:
    """The largest of the processes' values, so that all of them decide alike."""
    if not machine.several_processes:
        return value
    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


def deal(count: np.ndarray, devices: int) -> np.ndarray:
    """An order [K] of a cohort's places: one block of ceil(K / devices) for each device.

    Clients are dealt by size, largest first, back and forth over the devices, so that blocks cost
    the same, and stand by size in each block, so that a chunk holds clients of like size and
    unequal clients cost what they have. If K does not divide, the last blocks are short.
    """
    width = -(-len(count) // devices)
    room = np.clip(len(count) - width * np.arange(devices), 0, width)  # of each block
    cells = np.arange(width * devices).reshape(width, devices)
    cells[1::2] = cells[1::2, ::-1]
    row, device = np.divmod(cells.reshape(-1), devices)
    there = row < room[device]
    block = np.full((devices, width), -1)
    block[device[there], row[there]] = np.argsort(-count, kind="stable")
    return block[block >= 0]


def memory_limit(machine: Machine) -> int:
    """Bytes that a device may still use: its own limit, or this computer's free memory."""
    stats = machine.devices[0].memory_stats() if machine.devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return host_memory()


def host_memory() -> int:
    """Bytes of this computer's memory that are free."""
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
