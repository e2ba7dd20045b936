"""Rows of the zoo around FedAvg: a server optimizer, a compressor, another mean, sparsity."""

from collections.abc import Callable

from jaxfed import aggregate, combine
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.general import fedopt as optimizers
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.algorithms.general.fedopt import fedopt
from jaxfed.algorithms.row import Oracle, Row, Setting
from jaxfed.combine import compress, sparse
from jaxfed.tasks.task import Task


def _opt(name: str) -> Row:
    """FedOpt with one of its server optimizers."""

    def make(task: Task, s: Setting) -> Algorithm:
        server = getattr(optimizers, name)(s.rate / 2)
        return fedopt(task, s.work, client_optimizer=s.optimizer, server_optimizer=server)

    source = "Reddi et al., ICLR 2021"
    oracle = Oracle(
        "loop", "algorithms/general/test_fedopt.py", "test_rounds_are_those_of_the_paper"
    )
    return Row(f"fed{name}", fedopt, "any", make, "theta", "nothing", source, oracle)


def _compressed(
    name: str,
    made: compress.Compressor,
    feedback: Callable | None,
    keeps: str,
    source: str,
    oracle: Oracle,
) -> Row:
    """FedAvg with compressed uploads."""

    def make(task: Task, s: Setting) -> Algorithm:
        inner = fedavg(task, s.work, client_optimizer=s.optimizer)
        return combine.compressed(inner, compress=made, feedback=feedback)

    sends = "theta down, C(its change) up"
    return Row(name, fedavg, "any", make, sends, keeps, source, oracle, beside=compress)


def _robust(name: str, mean: Callable, source: str, oracle: Oracle, beside: Callable) -> Row:
    """FedAvg with another mean, which `beside` is or makes."""

    def make(task: Task, s: Setting) -> Algorithm:
        return fedavg(task, s.work, client_optimizer=s.optimizer, mean=mean)

    return Row(name, fedavg, "any", make, "theta", "nothing", source, oracle, beside=beside)


def _flasc(task: Task, s: Setting) -> Algorithm:
    adam = optimizers.adam(s.rate / 2)
    inner = fedopt(task, s.work, client_optimizer=s.optimizer, server_optimizer=adam)
    return combine.flasc(inner, down=0.5, up=0.25)


LOST, COPY = "what was lost, e", "the server's estimate, g"

COMPRESS = "combine/test_compress.py"
MEMORY = Oracle("loop", COMPRESS, "test_rounds_are_the_papers_loop")
SUBSPACE = Oracle("closed form", COMPRESS, "test_subspace_iteration_ends_at_the_svd")
ROUNDED = Oracle("closed form", COMPRESS, "test_rounding_is_unbiased_and_within_a_step")
ORDERED = Oracle(
    "loop", "test_aggregate.py", "test_the_median_and_the_trimmed_mean_are_those_of_numpy"
)
NEAREST = Oracle("loop", "test_aggregate.py", "test_krum_is_the_papers_loop")

OPTIMIZERS = tuple(_opt(name) for name in ("adagrad", "yogi", "adam"))
COMPRESSED = tuple(
    _compressed(*one)
    for one in (
        ("fedavg-topk", compress.top(0.3), None, "nothing", "the largest entries alone", MEMORY),
        (
            "fedavg-svd",
            compress.svd(1),
            None,
            "nothing",
            "the best components of each matrix alone",
            MEMORY,
        ),
        (
            "fedavg-ef14",
            compress.top(0.3),
            compress.ef14,
            LOST,
            "Seide et al., Interspeech 2014",
            MEMORY,
        ),
        (
            "fedavg-ef21",
            compress.svd(1),
            compress.ef21,
            COPY,
            "Richtarik et al., NeurIPS 2021",
            MEMORY,
        ),
        (
            "powersgd",
            compress.power(1),
            compress.ef14,
            LOST,
            "Vogels et al., NeurIPS 2019",
            SUBSPACE,
        ),
        (
            "fedavg-quantised",
            compress.quantised(4),
            None,
            "nothing",
            "QSGD's rounding: Alistarh et al., NeurIPS 2017",
            ROUNDED,
        ),
    )
)
ROBUST = tuple(
    _robust(*one)
    for one in (
        (
            "fedavg-median",
            aggregate.median,
            "Yin et al., ICML 2018",
            ORDERED,
            aggregate.median,
        ),
        (
            "fedavg-trimmed",
            aggregate.trimmed(0.2),
            "Yin et al., ICML 2018",
            ORDERED,
            aggregate.trimmed,
        ),
        ("krum", aggregate.krum(1), "Blanchard et al., NeurIPS 2017", NEAREST, aggregate.krum),
    )
)
SPARSE = (
    Row(
        "flasc",
        fedopt,
        "factors",
        _flasc,
        "the largest entries of A and B down, of their change up",
        "nothing",
        "Kuo et al., arXiv 2406.05233",
        oracle=Oracle("loop", "combine/test_sparse.py", "test_a_round_is_the_papers"),
        beside=sparse,
    ),
)
