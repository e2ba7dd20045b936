"""The engine: many clients at once, on one device or several. All code about devices is here.

On one device, clients are an array axis (vmap), `chunk` of them at a time. pmap splits this axis
over the devices of one process; shard_map over a global mesh splits it over processes. A whole
round, or several, is one jitted call that donates the server and the clients' states.

The engine depends on no algorithm, model or data set, and gives no meaning to any leaf.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxfed import algorithm as contract
from jaxfed.algorithm import Algorithm, Cohort, Data, ForEachClient, Leaf, PyTree
from jaxfed.data import memory
from jaxfed.simulation import account

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Which devices clients run on, and how many are vmapped at once on each (None: all)."""

    devices: tuple[jax.Device, ...]
    chunk: int | None = None

    @property
    def mesh(self) -> Mesh:
        """The devices as a mesh with one axis."""
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def several_processes(self) -> bool:
        """True if the devices belong to more than one process."""
        return len({d.process_index for d in self.devices}) > 1

    @property
    def sharing(self) -> int:
        """How many devices share one memory: all of them on a CPU, else 1."""
        return len(self.devices) if self.devices[0].platform == "cpu" else 1


def machine(devices: int | None = None, chunk: int | None = None) -> Machine:
    """A machine of the first `devices` of all processes' devices (None: all); see Machine."""
    available = jax.devices()
    if devices is not None and not 1 <= devices <= len(available):
        raise ValueError(
            f"devices={devices}, but JAX sees {len(available)}; on a CPU create more with "
            "--cpu-devices, or jax.config.update('jax_num_cpu_devices', n) before anything else"
        )
    if len({d.process_index for d in available[:devices]}) < jax.process_count():
        raise ValueError(
            f"devices={devices} leaves some of the {jax.process_count()} processes without one; "
            "leave it out, so that each uses its own"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} would run no client; use at least 1, or None for all")
    return Machine(tuple(available[:devices]), chunk)


def for_each_client(machine: Machine, *, uniform: bool = False) -> ForEachClient:
    """The verb on this machine: (client, base, message, cohort) -> Reply with leaves [K, ...].

    K may be any number: the cohort is padded to a multiple of the devices, and the reply is cut to
    K again. `uniform` promises that all clients have equally many examples: then every client runs
    the same number of local steps, and none idles while another finishes. The metrics include each
    reply's Account. Raises ValueError for a metric whose name is reserved.
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
                check_vma=False,  # otherwise gradients of replicated inputs are summed over devices
            )(base, message, cohort)
        else:
            split = contract.on_axis(lambda x: x.reshape(devices, -1, *x.shape[1:]), cohort, axes)
            parallel = jax.pmap(
                mapped, in_axes=(None, None, axes), axis_name=AXIS, devices=list(machine.devices)
            )
            reply = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), parallel(base, message, split)
            )
        return reply if clients % devices == 0 else jax.tree.map(lambda x: x[:clients], reply)

    return verb


def _filled_up(cohort: Cohort, spare: int) -> Cohort:
    """The cohort with `spare` places added: copies of the first client without examples."""
    if not spare:
        return cohort

    def longer(x):
        return jnp.concatenate([x, jnp.broadcast_to(x[:1], (spare, *x.shape[1:]))])

    real = jnp.arange(len(cohort.count) + spare) < len(cohort.count)
    filled = contract.on_axis(longer, cohort)
    return filled._replace(count=jnp.where(real, filled.count, 0))


def _specs(axes: Cohort, cohort: Cohort) -> Cohort:
    def spec(axis, part):
        return jax.tree.map(lambda _: _on_axis(axis), part)

    return jax.tree.map(spec, axes, cohort, is_leaf=lambda x: x is None)


def _map_clients(client, axes: Cohort, chunk: int | None, base, message, cohort):
    """The replies of all clients [K, ...], all at once or `chunk` at a time, one without vmap."""
    one, here = partial(client, base, message), cohort.id.shape[0]
    chunk = here if chunk is None else min(chunk, here)
    if 1 < chunk == here:
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

    return jax.lax.map(rejoin, mapped, batch_size=None if chunk == 1 else chunk)


def _check_closure(client: Callable) -> None:
    """Raises TypeError if the client's procedure closes over an array, which pmap cannot run."""
    while isinstance(client, partial):
        client = client.func
    for name, value in inspect.getclosurevars(client).nonlocals.items():
        leaves = jax.tree.leaves(value)
        if any(isinstance(x, jax.Array | np.ndarray) for x in leaves):
            raise TypeError(
                f"the client procedure {client.__qualname__} closes over the array {name!r}; "
                "pass it in base, message or k, so that it reaches every device"
            )


class Plan(NamedTuple):
    """The cohorts of R rounds, which the host draws from (seed, round) alone."""

    round: Leaf  # [R]
    id: Leaf  # [R, K]
    slot: Leaf  # [R, K] the index of the client's state in `states`
    start: Leaf  # [R, K] its first row in `examples`
    count: Leaf  # [R, K] its number of rows
    weight: Leaf  # [R, K] its share in the average; shares sum to one in each round


def rounds(
    algorithm: Algorithm, verb: ForEachClient, seed: int, most: int, width: int | None = None
) -> Callable:
    """(server, states, examples, plan) -> (server, states, metrics [R, ...]): R rounds in one call.

    Not jitted yet; see `compiled`. All randomness comes from (seed, round, client id) by fold_in
    and is never stored, so a round's randomness depends on its number alone. The metrics include an
    Account. For `most` and `width` see algorithm.Data.
    """

    def one_round(examples, carry, plan):
        server, states = carry
        here = cohort(states, examples, plan, seed, most, width)
        server, new, metrics = account.run_round(algorithm, server, here, verb)
        states = jax.tree.map(lambda s, n: s.at[plan.slot].set(n, mode="drop"), states, new)
        return (server, states), metrics

    def run(server, states, examples, plan):
        step = partial(one_round, examples)
        if plan.round.shape[0] == 1:  # no scan: convolutions are faster outside one
            carry, metrics = step((server, states), jax.tree.map(lambda x: x[0], plan))
            return *carry, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        carry, metrics = jax.lax.scan(step, (server, states), plan)
        return *carry, metrics

    return run


def cohort(
    states: PyTree,
    examples: PyTree,
    plan: Plan,
    seed: int,
    most: int,
    width: int | None = None,
) -> Cohort:
    """The cohort of one round of the plan (its fields [K], its round a scalar)."""
    key = jax.random.fold_in(jax.random.key(seed), plan.round)
    clients_key, round_key = jax.random.split(key)
    return Cohort(
        state=jax.tree.map(lambda s: s.at[plan.slot].get(mode="clip"), states),
        # In an array, as the programs that several runs share take arrays as arguments.
        data=Data(examples, plan.start, most, None if width is None else jnp.array([width])[0]),
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
    """`function` jitted for this machine; every device gets its whole results.

    For `rounds(...)`, donate (0, 1), which updates server and states in place.
    """
    if len(machine.devices) == 1:
        return jax.jit(function, donate_argnums=donate)
    return jax.jit(function, donate_argnums=donate, out_shardings=_everywhere(machine))


def place(tree: PyTree, machine: Machine) -> PyTree:
    """The tree copied to every device of the machine, as `compiled` functions expect it."""
    return jax.device_put(tree, _everywhere(machine))


def placed_shapes(tree: PyTree, machine: Machine) -> PyTree:
    """The shapes of what `place` would give, for a machine that is not here."""
    where = _everywhere(machine)

    def shape(leaf: Leaf) -> jax.ShapeDtypeStruct:
        kind = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=where)

    return jax.tree.map(shape, tree)


def _everywhere(machine: Machine) -> Sharding:
    return trials_sharding(machine, None)


def of_trials(
    many: Callable,
    machine: Machine,
    axes: Sequence[int | None],
    out_axes: Sequence[int | None],
    donate: tuple[int, ...],
) -> jax.stages.Wrapped:
    """A function of T trials' leaves, jitted: those of axis 0 are [T, ...], all share others.

    Trials are split over the devices, each of which needs nothing from the others.
    """
    if len(machine.devices) > 1:
        many = jax.shard_map(
            many,
            mesh=machine.mesh,
            in_specs=tuple(_on_axis(axis) for axis in axes),
            out_specs=[_on_axis(axis) for axis in out_axes],
            check_vma=False,  # its devices run loops of different lengths
        )
    return jax.jit(many, donate_argnums=donate)


def trials_sharding(machine: Machine, axis: int | None) -> Sharding:
    """Where a leaf of `of_trials` lies: those of axis 0 split over the devices, others on each."""
    if len(machine.devices) == 1:
        return SingleDeviceSharding(machine.devices[0])
    return NamedSharding(machine.mesh, _on_axis(axis))


def trial(leaf: jax.Array, axis: int | None, i: int) -> jax.Array:
    """Trial i of a leaf of `of_trials`, on a device that has it."""
    if axis is None:
        return leaf.addressable_shards[0].data
    parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
    begin = max(n for n in parts if n <= i)
    return parts[begin][i - begin]


def _on_axis(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(AXIS)


def distinct(tree: PyTree) -> PyTree:
    """The tree with repeated arrays copied, because an array can be donated only once."""
    seen: set[int] = set()

    def own(leaf: Leaf) -> Leaf:
        again = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if again else leaf

    return jax.tree.map(own, tree)


def largest(value: float, machine: Machine) -> float:
    """The largest of the processes' values, so that all processes decide alike."""
    if not machine.several_processes:
        return value
    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


def deal(count: np.ndarray, devices: int) -> np.ndarray:
    """An order [K] of a cohort's clients: one block of ceil(K / devices) for each device.

    Clients are dealt to the devices by size, largest first, back and forth, so that all blocks cost
    about the same. Each block is sorted by size, so that a chunk holds clients of similar size and
    small clients do not wait for large ones. If the devices do not divide K, the last blocks are
    shorter.
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
    """Free bytes of a device's memory, or of this computer's if the device is a CPU."""
    stats = machine.devices[0].memory_stats() if machine.devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return memory.free()
