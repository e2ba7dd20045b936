"""Rows of the zoo that differ in one choice alone: a rule, a compressor, a server optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxfed import aggregate, combine, lowrank
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.general import fedopt as optimizers
from jaxfed.algorithms.general.centralised import centralised
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.algorithms.general.fedopt import fedopt
from jaxfed.algorithms.general.fedper import fedper
from jaxfed.algorithms.row import Row, Setting
from jaxfed.algorithms.shared.fedhm import fedhm
from jaxfed.algorithms.shared.fedlora import fedlora
from jaxfed.algorithms.shared.fedloru import fedloru
from jaxfed.algorithms.shared.florist import florist
from jaxfed.algorithms.shared.lora_a2 import lora_a2
from jaxfed.algorithms.shared.ravan import ravan
from jaxfed.algorithms.shared.sa_fedlora import sa_fedlora
from jaxfed.combine import compress
from jaxfed.lowrank import forms, restarts, rules
from jaxfed.tasks.task import Task

MERGES: dict[str, Any] = {"every": 2, "restart": restarts.reinit}


def _averaged(s: Setting) -> Callable[[Task], Algorithm]:
    """task -> FedAvg."""
    return partial(fedavg, work=s.work, client_optimizer=s.sgd)


def _opt(name: str) -> Row:
    """FedOpt with one of its server optimizers."""

    def make(task: Task, s: Setting) -> Algorithm:
        server = getattr(optimizers, name)(s.rate / 2)
        return fedopt(task, s.work, client_optimizer=s.sgd, server_optimizer=server)

    return Row(f"fed{name}", fedopt, "any", make, "theta", "nothing", "Reddi et al., ICLR 2021")


def _aggregated(name: str, rule: rules.Rule, sends: str, source: str) -> Row:
    """FedLoRA with one of the rules of aggregation."""

    def make(task: Task, s: Setting) -> Algorithm:
        return fedlora(task, s.work, rule=rule, client_optimizer=s.sgd, cohort_size=s.cohort)

    exact = rule.exact or rule.trains_b is not None  # with one side in common, means are exact
    return Row(name, fedlora, "factors", make, sends, "nothing", source, exact)


def _rac(task: Task, s: Setting) -> Algorithm:
    ffa = fedlora(task, s.work, rule=rules.FFA, client_optimizer=s.sgd)
    return combine.accumulate(ffa, **MERGES)


def _raflora(task: Task, s: Setting) -> Algorithm:
    return fedlora(task, s.work, rule=rules.RAFLORA, client_optimizer=s.sgd, ranks=s.ranks)


def _frlora(task: Task, s: Setting) -> Algorithm:
    """FRLoRA: from the weights' own best factors, to which each merge returns."""
    begun = task._replace(init=lambda key: lowrank.principal(*task.init(key)))
    merged: dict[str, Any] = {"every": 1, "restart": restarts.residual}
    return fedloru(begun, s.work, **merged, client_optimizer=s.sgd)


def _list(task: Task, s: Setting) -> Algorithm:
    """FedLoRU whose merges are kept as a list."""

    return combine.accumulate_list(_averaged(s), task, every=MERGES["every"], merges=3)


def _cola(task: Task, s: Setting) -> Algorithm:
    """COLA: all data in one place; a round is a step on the union, and a link has tau of them."""
    one = centralised(task, batch_size=s.work.batch_size, optimizer=s.sgd)
    return combine.accumulate(one, **MERGES)


def _fedpara(task: Task, s: Setting) -> Algorithm:
    return combine.parametrised(_averaged(s), task, form=forms.HADAMARD)


def _pfedpara(task: Task, s: Setting) -> Algorithm:
    """pFedPara: the second pair of each path stays with the client."""

    def make(task: Task) -> Algorithm:
        return fedper(task, s.work, personal=forms.SECOND, client_optimizer=s.sgd)

    return combine.parametrised(make, task, form=forms.SHIFTED)


def _fedsb(task: Task, s: Setting) -> Algorithm:
    return combine.parametrised(_averaged(s), task, form=forms.square())


def _compressed(
    name: str, made: compress.Compressor, feedback: Callable | None, keeps: str, source: str
) -> Row:
    """FedAvg with compressed uploads."""

    def make(task: Task, s: Setting) -> Algorithm:
        inner = fedavg(task, s.work, client_optimizer=s.sgd)
        return combine.compressed(inner, compress=made, feedback=feedback)

    return Row(name, fedavg, "any", make, "theta down, C(its change) up", keeps, source)


def _robust(name: str, mean: Callable, source: str) -> Row:
    """FedAvg with another mean."""

    def make(task: Task, s: Setting) -> Algorithm:
        return fedavg(task, s.work, client_optimizer=s.sgd, mean=mean)

    return Row(name, fedavg, "any", make, "theta", "nothing", source)


def _flasc(task: Task, s: Setting) -> Algorithm:
    adam = optimizers.adam(s.rate / 2)
    inner = fedopt(task, s.work, client_optimizer=s.sgd, server_optimizer=adam)
    return combine.flasc(inner, down=0.5, up=0.25)


MERGED = "A and B; down also the change of W"
LOST, COPY = "what was lost, e", "the server's estimate, g"

OPTIMIZERS = tuple(_opt(name) for name in ("adagrad", "yogi", "adam"))
AGGREGATED = (
    *(
        _aggregated(*one)
        for one in (
            ("fedex", rules.FEDEX, MERGED, "FedEx-LoRA: Singhal et al., ACL 2025"),
            ("flora", rules.FLORA, "A and B up, the change of W down", "Wang et al., NeurIPS 2024"),
            ("flexlora", rules.FLEXLORA, "A and B", "Bai et al., NeurIPS 2024"),
            ("fedmomentum", rules.FEDMOMENTUM, MERGED, "arXiv 2603.08014"),
            ("fedsvd", rules.FEDSVD, "A and B down, B up", "arXiv 2505.12805"),
            ("ffa", rules.FFA, "B", "FFA-LoRA: Sun et al., ICLR 2024"),
            ("rolora", rules.ROLORA, "A and B down, B or A up", "arXiv 2409.02346"),
        )
    ),
    Row(
        "rac",
        fedlora,
        "factors",
        _rac,
        "B; a merge is broadcast every tau rounds",
        "nothing",
        "RAC-LoRA and Fed-RAC-LoRA, arXiv 2410.08305",
        exact=True,
    ),
    Row(
        "florist",
        florist,
        "factors",
        lambda task, s: florist(
            task, s.work, energy=0.9, client_optimizer=s.sgd, cohort_size=s.cohort
        ),
        "A and B up, the first components of the change of W down",
        "nothing",
        "Ramesh and Dass, MLSys 2026",
    ),
    Row(
        "lora-a2",
        lora_a2,
        "factors",
        lambda task, s: lora_a2(
            task, s.work, components=max(1, s.rank // 2), client_optimizer=s.sgd
        ),
        "A and B down, the best components of B or A up",
        "nothing",
        "Koo et al., ACL 2025",
        exact=True,
    ),
    Row(
        "sa-fedlora",
        sa_fedlora,
        "factors",
        lambda task, s: sa_fedlora(
            task,
            s.work,
            initiating=max(1, s.rounds // 3),
            rounds=max(2, s.rounds),
            least=1,
            mu=0.5,
            client_optimizer=s.sgd,
        ),
        "the whole model, then r_t components of A and B",
        "nothing",
        "Yang et al., arXiv 2405.09394 (the schedule is ours)",
    ),
    Row(
        "raflora",
        fedlora,
        "factors",
        _raflora,
        "r_k components of A and B",
        "nothing",
        "arXiv 2602.13486",
    ),
)
CHAINS = (
    Row(
        "frlora",
        fedloru,
        "factors",
        _frlora,
        "A and B; a merge is broadcast every round",
        "nothing",
        "FRLoRA, ICLR 2025",
    ),
    Row(
        "fedloru-list",
        fedloru,
        "scratch",
        _list,
        "A and B; a merge is broadcast every tau rounds",
        "nothing",
        "FedLoRU's list for LLaMA (arXiv 2409.12371, rebuttal)",
    ),
    Row(
        "cola",
        centralised,
        "factors",
        _cola,
        "gradients; a merge is broadcast every tau rounds",
        "nothing",
        "COLA, on all data in one place: Xia et al., arXiv 2401.04151",
    ),
)
FORMS = (
    Row(
        "fedpara",
        fedavg,
        "scratch",
        _fedpara,
        "two pairs of factors, W = (A_1 B_1) o (A_2 B_2)",
        "nothing",
        "Nam et al., ICLR 2022",
    ),
    Row(
        "pfedpara",
        fedper,
        "scratch",
        _pfedpara,
        "the first pair, W = (A_1 B_1) o (A_2 B_2 + 1)",
        "the second pair",
        "Nam et al., ICLR 2022",
    ),
    Row(
        "fedsb",
        fedavg,
        "factors",
        _fedsb,
        "a core R of each layer, W + s A R B",
        "nothing",
        "Fed-SB, arXiv 2502.15436 (here with W's own directions)",
        exact=True,
    ),
    Row(
        "ravan",
        ravan,
        "factors",
        lambda task, s: ravan(task, s.work, heads=1, client_optimizer=s.sgd),
        "a core H_i of each head, W + s sum_i s_i A_i H_i B_i",
        "nothing",
        "Raje et al., NeurIPS 2025",
        exact=True,
    ),
    Row(
        "fedhm",
        fedhm,
        "scratch",
        lambda task, s: fedhm(task, s.work, client_optimizer=s.sgd, ranks=s.ranks),
        "the r_k best components of W, and their product back",
        "nothing",
        "Yao et al., arXiv 2111.14655",
    ),
)
COMPRESSED = tuple(
    _compressed(*one)
    for one in (
        ("fedavg-topk", compress.top(0.3), None, "nothing", "the largest entries alone"),
        ("fedavg-ef14", compress.top(0.3), compress.ef14, LOST, "Seide et al., Interspeech 2014"),
        ("fedavg-ef21", compress.svd(1), compress.ef21, COPY, "Richtarik et al., NeurIPS 2021"),
        ("powersgd", compress.power(1), compress.ef14, LOST, "Vogels et al., NeurIPS 2019"),
        (
            "fedavg-quantised",
            compress.quantised(4),
            None,
            "nothing",
            "QSGD's rounding: Alistarh et al., NeurIPS 2017",
        ),
    )
)
ROBUST = tuple(
    _robust(*one)
    for one in (
        ("fedavg-median", aggregate.median, "Yin et al., ICML 2018"),
        ("fedavg-trimmed", aggregate.trimmed(0.2), "Yin et al., ICML 2018"),
        ("krum", aggregate.krum(1), "Blanchard et al., NeurIPS 2017"),
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
    ),
)
