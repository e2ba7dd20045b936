"""Consecutive rounds that run in one call: which rounds, and what the call takes."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax

from jaxfed import trees
from jaxfed.algorithm import Cohort, PyTree
from jaxfed.data.federated import filled_up
from jaxfed.simulation import engine, participation, population
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.programs import Programs


class Block(NamedTuple):
    """Consecutive rounds that run in one call."""

    rounds: range
    plan: engine.Plan
    states: PyTree  # the plan's `slot` points into these
    examples: PyTree  # the plan's `start` points into these


@dataclasses.dataclass(frozen=True)
class Supply:
    """What a block of rounds needs: its clients, what they keep, and their examples."""

    experiment: Experiment
    machine: engine.Machine
    population: population.Population
    examples: PyTree | None  # on the devices; None: each cohort's are sent when it is drawn

    def block(self, rounds: range) -> Block:
        """These rounds with all that they take, on the devices."""
        plan = participation.make(self.experiment, len(self.machine.devices), rounds)
        states, plan = self.population.lend(plan)
        if self.examples is not None:
            return Block(rounds, plan, states, self.examples)
        examples, plan = participation.packed(self.experiment, plan)
        return Block(rounds, plan, states, engine.place(examples, self.machine))

    def cohort(self) -> Cohort:
        """The first round's cohort, as shapes."""
        e, first = self.experiment, self.block(range(1))
        plan = jax.tree.map(lambda x: x[0], first.plan)
        made = partial(engine.cohort, seed=e.seed, most=e.data.train.most)
        return jax.eval_shape(made, first.states, first.examples, plan)


def placed(
    e: Experiment, host: Host, machine: engine.Machine, programs: Programs | None
) -> PyTree | None:
    """The training examples on the devices; None if each cohort's are to be sent later."""
    examples, stream = e.data.train.examples, host.stream
    if stream is None:
        stream = trees.nbytes(examples) > engine.memory_limit(machine) // 2
    if stream:
        return None
    rows = e.data.size.rows if programs is None else programs.size.rows
    return engine.place(filled_up(examples, rows), machine)


def ranges(e: Experiment, h: Host, fuse: int, done: int) -> Iterator[range]:
    """The rounds after `done`, up to `fuse` in a call, cut where something else is due.

    The cuts depend on the schedule alone, not on where a run was resumed.
    """
    every = [fuse, e.evaluate_every or e.rounds, h.checkpoint_every or e.rounds]
    while done < e.rounds:
        end = min(e.rounds, *((done // n + 1) * n for n in every))
        yield range(done, end)
        done = end
