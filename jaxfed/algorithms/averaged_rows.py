"""Rows of the zoo around FedAvg: server optimizers, compressors, means, sparsity, parts."""

from collections.abc import Callable
from typing import Any

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


def _arm(name: str, trains: Any, sends: str, oracle: Oracle) -> Row:
    """FedAvg of what FedPETuning trains of an encoder."""

    def make(task: Task, s: Setting) -> Algorithm:
        return fedavg(task, s.work, client_optimizer=s.optimizer)

    source = "FedPETuning: Zhang et al., Findings of ACL 2023"
    return Row(name, fedavg, trains, make, sends, "nothing", source, oracle)


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
ONE_STEP = Oracle(
    "closed form",
    "algorithms/general/test_fedavg.py",
    "test_one_local_full_batch_step_is_centralised_gradient_descent",
)
AS_FEDAVG = Oracle(
    "another row",
    "algorithms/shared/test_fedlora.py",
    "test_without_a_rule_it_is_fedavg_over_the_factors",
)
ENCODED = Oracle("loop", "configs/test_text.py", "test_a_round_of_an_arm_is_that_of_a_loop")
ARMS = (
    _arm("fedft", "any", "all weights of an encoder", ONE_STEP),
    _arm("fedbf", "biases", "the biases of an encoder, and the head", ENCODED),
    _arm("fedlr", "factors", "A and B of an encoder, and the head", AS_FEDAVG),
    _arm("fedap", "adapters", "bottleneck adapters of an encoder, and the head", ENCODED),
    _arm("fedpf", "prefixes", "keys and values before each layer, and the head", ENCODED),
)
