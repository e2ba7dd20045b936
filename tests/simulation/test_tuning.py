"""What a run measures at first: clients at once, and how convolutions are computed."""

import dataclasses
from types import SimpleNamespace

import pytest

from jaxfed.simulation import hlo, tuning
from jaxfed.simulation.engine import Machine

CPU = SimpleNamespace(platform="cpu", process_index=0)
GPU = SimpleNamespace(platform="gpu", process_index=0, memory_stats=lambda: {"bytes_limit": 1000})
SERVER = SimpleNamespace(base={})


class Made:
    """Rounds whose compiled programs take the seconds and bytes of a table, and note themselves."""

    def __init__(self, monkeypatch, seconds, held=1, compiling=1.0):
        self.compiled = []

        def compiled(step, machine, arguments):
            self.compiled.append(step)
            return step, compiling

        monkeypatch.setattr(tuning, "_compiled", compiled)
        monkeypatch.setattr(tuning, "_seconds", lambda program, *_: seconds[program])
        monkeypatch.setattr(tuning, "temporary_bytes", lambda program: held * program)

    def chunk(self, device, candidates, calls):
        machine = Machine((device,))
        found = tuning.measured_chunk(lambda m: m.chunk, machine, (SERVER,), candidates, calls)
        return found.chunk


def expecting(monkeypatch, *chunks):
    """The first of the chunks should be the fastest, and the others hardly slower."""
    costs = {50: 1.2, 25: 1.2, 10: 1.2, 5: 1.2, 2: 1.2, 1: 1.2}
    costs |= {n: 1.0 + 0.05 * (i > 0) for i, n in enumerate(chunks)}
    monkeypatch.setattr(tuning, "_costs", lambda *_: costs)


@pytest.mark.quick
def test_on_a_gpu_the_most_clients_that_fit_are_compiled_and_no_others(monkeypatch):
    made = Made(monkeypatch, {64: 1.0, 8: 1.0}, held=100)
    assert made.chunk(GPU, [64, 32, 16, 8, 4, 2, 1], 10**6) == 8
    assert made.compiled == [64, 8]  # ten fit, by the memory of 64


@pytest.mark.quick
@pytest.mark.parametrize(
    ("expected", "calls", "chosen", "compiled"),
    [
        ((5,), 0, 50, [50]),
        ((5,), 10, 50, [50]),
        ((5,), 11, 5, [50, 5]),
        ((5,), 10**6, 5, [50, 5]),
        ((5, 2), 20, 5, [50, 5]),
        ((5, 2), 21, 2, [50, 5, 2]),
        ((5, 2, 1), 10**6, 2, [50, 5, 2, 1]),
        ((10, 5), 10**6, 50, [50, 10]),
        ((50, 10), 10**6, 50, [50, 10]),
        ((50,), 10**6, 50, [50]),
    ],
)
def test_another_chunk_is_compiled_if_it_should_be_as_fast_and_its_gain_would_pay_for_that(
    monkeypatch, expected, calls, chosen, compiled
):
    made = Made(monkeypatch, {50: 1.0, 10: 1.1, 5: 0.9, 2: 0.8, 1: 0.85})
    expecting(monkeypatch, *expected)
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], calls) == chosen
    assert made.compiled == compiled


@pytest.mark.quick
def test_what_does_not_fit_even_one_client_at_a_time_is_refused(monkeypatch):
    made = Made(monkeypatch, {}, held=2000)
    with pytest.raises(ValueError, match="even one client at a time needs 2000 bytes, but 1000"):
        made.chunk(GPU, [4, 2, 1], 1)


# Kernels, MB and GFLOP of a local step, and MB of base, as hlo reads them from the programs of W1
# to W4 for the largest chunk; and how many times as long as the fastest each chunk took (Xeon).
MEASURED = {
    "W1": (
        (43, 256.1, 0.88, 0.0),
        {50: 2.17, 25: 1.60, 10: 1.34, 5: 1.29, 2: 1.29, 1: 1.0},
    ),
    "W2": ((83, 5197.0, 11.98, 0.0), {25: 1.95, 5: 1.63, 1: 1.0}),
    "W3": ((65, 255.8, 6.06, 7.5), {50: 1.13, 25: 1.11, 10: 1.0, 5: 1.11, 2: 1.77, 1: 2.08}),
    "W4": ((369, 2809.1, 52.9, 21.1), {10: 1.36, 5: 1.10, 2: 1.05, 1: 1.0}),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", MEASURED)
def test_the_chunk_that_is_expected_to_be_the_fastest_is_within_a_tenth_of_it(name):
    (kernels, moved, flops, base), slower = MEASURED[name]
    step, most = hlo.Work(kernels, moved * 1e6, flops * 1e9), max(slower)
    cost = {n: tuning.predicted(step, most, n, base * 1e6) for n in slower}
    assert slower[min(cost, key=lambda n: cost[n])] <= 1.1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("seconds", "calls", "chosen", "compiled"),
    [
        ({"winograd": 2.0, "xla": 0.5}, 1000, "xla", ["winograd", "xla"]),
        ({"winograd": 0.6, "xla": 0.5}, 1000, "xla", ["winograd", "xla"]),
        ({"winograd": 0.97, "xla": 2.0}, 1000, None, ["winograd", "xla"]),
        ({"winograd": 0.1, "xla": 0.1}, 9, None, []),
    ],
)
def test_another_lowering_is_chosen_if_it_is_clearly_faster(
    monkeypatch, seconds, calls, chosen, compiled
):
    made = Made(monkeypatch, seconds)
    monkeypatch.setattr(tuning, "temporary_bytes", lambda program: 0)
    default = tuning.Measured(8, 1.0, compiling=1.0, program=None)
    machine = dataclasses.replace(Machine((GPU,)), chunk=8)
    others = ("winograd", "xla")
    found = tuning.measured_lowering(lambda n: n, machine, (), default, others, calls)
    assert (found, made.compiled) == (chosen, compiled)
