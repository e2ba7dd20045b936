"""Runs in lockstep: each has the records of the run alone, whatever becomes of the others."""

import itertools

import at_once
import jax
import jax.numpy as jnp
import pytest

from jaxfed.simulation import engine, lockstep, pooling, run, together
from jaxfed.simulation.programs import Programs


def at_work(members, devices=1, most=None):
    """(the trials of these runs, which share what they can, and their turns)."""
    members = pooling.shared(members)
    trials = together.together(members, engine.machine(devices), most)
    return trials, lockstep.run_blocks(members, trials)


def numbers(records):
    """{"[0]['loss']": number} of records, without the seconds."""
    flat, _ = jax.tree.flatten_with_path([{**r, "seconds": 0} for r in records])
    return {jax.tree_util.keystr(path): value for path, value in flat}


def alone(experiment, programs):
    (p,) = at_once.prepared([experiment], programs)
    return numbers(list(itertools.chain.from_iterable(run.run_blocks(p)))[1:])


@pytest.mark.parametrize("most", [None, pytest.param(1, marks=pytest.mark.full)])
def test_each_has_the_records_of_its_run_alone_whatever_becomes_of_the_others(most):
    """At once, or one after another in a call.

    The second diverges at once, and the third stops early; the first measures its server.
    """

    def norm(server, done):
        return {"norm": jnp.linalg.norm(jax.tree.leaves(server.theta)[0])}

    experiments = [
        at_once.experiment(rate=0.1, seed=0, server_measures=norm),
        at_once.experiment(rate=1e30, seed=1),
        at_once.experiment(rate=0.3, seed=1, stop_when=lambda records: len(records) >= 4),
    ]
    programs = Programs(experiments[0].data.size)
    records, ends, errors = ([], [], []), {}, {}
    for turns in at_work(at_once.prepared(experiments, programs), most=most)[1]:
        for turn in turns:
            records[turn.trial].extend(turn.records)
            if turn.ended:
                ends[turn.trial], errors[turn.trial] = len(records[turn.trial]), turn.error
    assert ends == {0: 6, 1: 0, 2: 4}
    assert [i for i, error in errors.items() if error] == [1]
    for i in (0, 2):
        assert numbers(records[i]) == pytest.approx(alone(experiments[i], programs), rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("most", [None, 1])
def test_devices_are_given_trials_and_a_merge_stays_a_condition(most):
    """Three trials on two devices; the rounds of one have no part in those of another."""
    settings = [(0, 0.1), (1, 0.2), (2, 0.3)]
    experiments = [at_once.experiment("fedloru", seed, rate) for seed, rate in settings]
    programs = Programs(experiments[0].data.size)
    members = at_once.prepared(experiments, programs)
    plans = {0: members[0].supply.block(next(members[0].ranges())).plan}
    trials, work = at_work(members, devices=2, most=most)
    text = trials.compile(plans).as_text()
    assert "conditional(" in text
    assert not any(word in text for word in ("all-reduce", "all-gather", "collective", "all-to"))
    records = ([], [], [])
    for turn in itertools.chain.from_iterable(work):
        records[turn.trial].extend(turn.records)
    for i, found in enumerate(records):
        assert numbers(found) == pytest.approx(alone(experiments[i], programs), rel=1e-4)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.full)])
def test_calls_may_be_of_different_numbers_of_rounds(devices):
    """Of two, one, one and two, as evaluations and checkpoints cut them.

    Half of the trials end before the last call, so that the others are in a narrower program.
    """
    each = {"rounds": at_once.ROUNDS, "evaluate_every": 3}
    stops = [None, lambda records: len(records) >= 3, lambda records: len(records) >= 3, None]
    experiments = [
        at_once.experiment("fedloru", i, 0.1 * (1 + i), stop_when=stop, **each)
        for i, stop in enumerate(stops)
    ]
    programs = Programs(experiments[0].data.size)
    members = at_once.prepared(experiments, programs)
    assert [len(rounds) for rounds in members[0].ranges()] == [2, 1, 1, 2]
    records = ([], [], [], [])
    for turn in itertools.chain.from_iterable(at_work(members, devices)[1]):
        records[turn.trial].extend(turn.records)
    assert list(map(len, records)) == [6, 3, 3, 6]
    for i, found in enumerate(records):
        assert numbers(found) == pytest.approx(alone(experiments[i], programs), rel=1e-4)
