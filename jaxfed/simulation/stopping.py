"""When a run ends before its last round: `Experiment(..., stop_when=...)`."""

from collections.abc import Callable, Sequence

from jaxfed import values
from jaxfed.simulation import engine, run_folder
from jaxfed.simulation import records as recording
from jaxfed.simulation.prepare import Prepared

ABSENT = object()


def patience(
    measure: str = "accuracy", evaluations: int = 5, *, least: float = 0.0
) -> Callable[[Sequence[dict]], bool]:
    """A `stop_when`: true once that many evaluations in a row were no better than the best before.

    `measure` is a name of the records, such as "test_loss", of which less is better, as of all
    whose names end in loss, perplexity, error, mse or mae; "personal/accuracy/mean" is of clients'
    own models. Better is by more than `least`.
    """
    values.kind("measure", measure, str, 'a name of the records, such as "accuracy"')
    evaluations = values.whole("evaluations", evaluations, 1)
    least = values.number("least", least, 0.0)
    sign = -1 if recording.falls(measure) else 1

    def stop_when(records: Sequence[dict]) -> bool:
        there = [x for r in records if (x := recording.at(r, measure, ABSENT)) is not ABSENT]
        given = [x for x in there if x is not None]
        if records and not there:
            raise ValueError(f"no record has {measure!r}; they have {', '.join(records[-1])}")
        if given and not isinstance(given[-1], int | float):
            raise ValueError(f"{measure!r} is no number in a record; it is {given[-1]!r}")
        found = [sign * value for value in given]
        before, recent = found[:-evaluations], found[-evaluations:]
        return bool(before) and max(recent) <= max(before) + least

    return stop_when


def watched(p: Prepared) -> Callable[[Sequence[dict]], bool]:
    """A function of each block's records: true, on all processes, if the run is to end after it.

    After each evaluation `stop_when` gets all records, also those from before a resume, as they
    stand in metrics.jsonl: numbers that are not finite are None.
    """
    stop_when = p.experiment.stop_when
    if stop_when is None:
        return lambda block: False
    history: list[dict] = []
    if p.folder is not None and p.state.done:
        stored = run_folder.records(p.folder / "metrics.jsonl")
        history += [record for _, record in stored][: p.state.done]

    def ends(block: Sequence[dict]) -> bool:
        history.extend(map(run_folder.finite, block))
        evaluated = bool(history) and "test_loss" in history[-1]
        return evaluated and bool(engine.largest(bool(stop_when(history)), p.machine))

    return ends
