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


def expecting(monkeypatch, chunk):
    monkeypatch.setattr(tuning, "_expected", lambda *_: chunk)


@pytest.mark.quick
def test_on_a_gpu_the_most_clients_that_fit_are_compiled_and_no_others(monkeypatch):
    made = Made(monkeypatch, {64: 1.0, 8: 1.0}, held=100)
    assert made.chunk(GPU, [64, 32, 16, 8, 4, 2, 1], 10**6) == 8
    assert made.compiled == [64, 8]  # ten fit, by the memory of 64


@pytest.mark.quick
def test_of_all_others_only_the_one_that_is_expected_to_be_faster_is_compiled(monkeypatch):
    made = Made(monkeypatch, {50: 1.0, 2: 1.1})
    expecting(monkeypatch, 2)
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], 10**6) == 50
    assert made.compiled == [50, 2]
    expecting(monkeypatch, None)
    made.compiled.clear()
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], 10**6) == 50
    assert made.compiled == [50]


@pytest.mark.quick
def test_a_further_one_is_compiled_if_its_gain_would_pay_for_that(monkeypatch):
    made = Made(monkeypatch, {50: 1.0, 5: 0.9, 2: 0.8, 1: 0.85})
    expecting(monkeypatch, 5)
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], 100) == 2
    assert made.compiled == [50, 5, 2, 1]
    made.compiled.clear()
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], 10) == 5
    assert made.compiled == [50, 5]
    made.compiled.clear()
    assert made.chunk(CPU, [50, 25, 10, 5, 2, 1], 0) == 50
    assert made.compiled == [50]


@pytest.mark.quick
def test_what_does_not_fit_even_one_client_at_a_time_is_refused(monkeypatch):
    made = Made(monkeypatch, {}, held=2000)
    with pytest.raises(ValueError, match="even one client at a time needs 2000 bytes, but 1000"):
        made.chunk(GPU, [4, 2, 1], 1)


@pytest.mark.quick
def test_clients_with_weights_of_their_own_run_few_at_once_and_those_of_one_base_many():
    own = hlo.Work(kernels=40, bytes=50 * 5e6, wide=50 * 17e6)
    cost = {n: tuning.predicted(own, 50, n, held=1.6e6, base=0) for n in (50, 10, 2, 1)}
    assert min(cost, key=lambda n: cost[n]) == 2
    shared = hlo.Work(kernels=40, bytes=15e6 + 50 * 1e6, wide=50 * 121e6)
    cost = {n: tuning.predicted(shared, 50, n, held=0.9e6, base=7.5e6) for n in (50, 10, 2, 1)}
    assert min(cost, key=lambda n: cost[n]) == 50


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
