"""Rows of the zoo over factors that differ in one choice alone: a rule, a merge, a form."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxfed import combine, lowrank
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.general.centralised import centralised
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.algorithms.general.fedper import fedper
from jaxfed.algorithms.row import Oracle, Row, Setting
from jaxfed.algorithms.shared.fedhm import fedhm
from jaxfed.algorithms.shared.fedlora import fedlora
from jaxfed.algorithms.shared.fedloru import fedloru
from jaxfed.algorithms.shared.florist import florist
from jaxfed.algorithms.shared.lora_a2 import lora_a2
from jaxfed.algorithms.shared.ravan import ravan
from jaxfed.algorithms.shared.sa_fedlora import sa_fedlora
from jaxfed.lowrank import forms, restarts, rules
from jaxfed.tasks.task import Task

DECAY = 1e-2  # lambda of FedHM


def _averaged(s: Setting) -> Callable[[Task], Algorithm]:
    """task -> FedAvg."""
    return partial(fedavg, work=s.work, client_optimizer=s.optimizer)


def _aggregated(name: str, rule: rules.Rule, sends: str, source: str, oracle: Oracle) -> Row:
    """FedLoRA with one of the rules of aggregation."""

    def make(task: Task, s: Setting) -> Algorithm:
        ranks = s.ranks if rule in (rules.FLORA, rules.FLEXLORA) and s.mixture else None
        return fedlora(
            task,
            s.work,
            rule=rule,
            client_optimizer=s.optimizer,
            cohort_size=s.cohort,
            ranks=ranks,
        )

    exact = rule.exact or rule.trains_b is not None  # with one side in common, means are exact
    return Row(name, fedlora, "factors", make, sends, "nothing", source, oracle, exact)


def _rac(task: Task, s: Setting) -> Algorithm:
    ffa = fedlora(task, s.work, rule=rules.FFA, client_optimizer=s.optimizer)
    return combine.accumulate(ffa, **s.merges)


def _raflora(task: Task, s: Setting) -> Algorithm:
    return fedlora(task, s.work, rule=rules.RAFLORA, client_optimizer=s.optimizer, ranks=s.ranks)


def _frlora(task: Task, s: Setting) -> Algorithm:
    """FRLoRA: from the weights' own best factors, to which each merge returns."""
    begun = task._replace(init=lambda key: lowrank.principal(*task.init(key)))
    merged: dict[str, Any] = {"every": 1, "restart": restarts.residual}
    return fedloru(begun, s.work, **merged, client_optimizer=s.optimizer)


def _list(task: Task, s: Setting) -> Algorithm:
    """FedLoRU whose merges are kept as a list."""

    return combine.accumulate_list(_averaged(s), task, every=s.merge_every, merges=3)


def _cola(task: Task, s: Setting) -> Algorithm:
    """COLA: all data in one place; a round is a step on the union, and a link has tau of them."""
    one = centralised(task, batch_size=s.work.batch_size, optimizer=s.optimizer)
    return combine.accumulate(one, **s.merges)


def _fedpara(task: Task, s: Setting) -> Algorithm:
    return combine.parametrised(_averaged(s), task, form=forms.HADAMARD)


def _pfedpara(task: Task, s: Setting) -> Algorithm:
    """pFedPara: the second pair of each path stays with the client."""

    def make(task: Task) -> Algorithm:
        return fedper(task, s.work, personal=forms.SECOND, client_optimizer=s.optimizer)

    return combine.parametrised(make, task, form=forms.SHIFTED)


def _fedsb(task: Task, s: Setting) -> Algorithm:
    return combine.parametrised(_averaged(s), task, form=forms.square())


MERGED = "A and B; down also the change of W"


FEDLORA = "algorithms/shared/test_fedlora.py"
MEAN = Oracle("loop", FEDLORA, "test_an_exact_rule_changes_the_model_by_the_mean_of_the_products")
ONE_SIDE = Oracle(
    "loop", FEDLORA, "test_with_one_side_frozen_the_mean_of_products_is_the_product_of_means"
)
BEST = Oracle(
    "loop", FEDLORA, "test_flexlora_and_fedmomentum_go_on_with_the_svd_of_the_mean_product"
)
AS_FFA = Oracle(
    "another row", FEDLORA, "test_fedsvd_keeps_the_product_of_ffa_lora_and_makes_a_orthonormal"
)
AGGREGATED = (
    *(
        _aggregated(*one)
        for one in (
            ("fedex", rules.FEDEX, MERGED, "FedEx-LoRA: Singhal et al., ACL 2025", MEAN),
            (
                "flora",
                rules.FLORA,
                "A and B up, the change of W down",
                "Wang et al., NeurIPS 2024",
                MEAN,
            ),
            ("flexlora", rules.FLEXLORA, "A and B", "Bai et al., NeurIPS 2024", BEST),
            ("fedmomentum", rules.FEDMOMENTUM, MERGED, "arXiv 2603.08014", MEAN),
            ("fedsvd", rules.FEDSVD, "A and B down, B up", "arXiv 2505.12805", AS_FFA),
            ("ffa", rules.FFA, "B", "FFA-LoRA: Sun et al., ICLR 2024", ONE_SIDE),
            ("rolora", rules.ROLORA, "A and B down, B or A up", "arXiv 2409.02346", ONE_SIDE),
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
        oracle=Oracle(
            "closed form",
            "algorithms/shared/test_fedlora.py",
            "test_a_cycle_of_rac_lora_is_a_projected_gradient_step",
        ),
        exact=True,
        beside=combine.accumulate,
    ),
    Row(
        "florist",
        florist,
        "factors",
        lambda task, s: florist(
            task, s.work, energy=0.9, client_optimizer=s.optimizer, cohort_size=s.cohort
        ),
        "A and B up, the first components of the change of W down",
        "nothing",
        "Ramesh and Dass, MLSys 2026",
        oracle=Oracle(
            "loop",
            "algorithms/shared/test_florist.py",
            "test_w_takes_the_first_singular_values_of_the_mean_product",
        ),
    ),
    Row(
        "lora-a2",
        lora_a2,
        "factors",
        lambda task, s: lora_a2(
            task, s.work, components=max(1, s.rank // 2), client_optimizer=s.optimizer
        ),
        "A and B down, the best components of B or A up",
        "nothing",
        "Koo et al., ACL 2025",
        oracle=Oracle(
            "loop", "algorithms/shared/test_lora_a2.py", "test_three_rounds_are_the_papers_loop"
        ),
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
            client_optimizer=s.optimizer,
        ),
        "the whole model, then r_t components of A and B",
        "nothing",
        "Yang et al., arXiv 2405.09394 (the schedule is ours)",
        oracle=Oracle(
            "another row",
            "algorithms/shared/test_sa_fedlora.py",
            "test_with_a_constant_rank_it_is_fedprox_and_then_fedlora",
        ),
    ),
    Row(
        "raflora",
        fedlora,
        "factors",
        _raflora,
        "r_k components of A and B",
        "nothing",
        "arXiv 2602.13486",
        oracle=Oracle(
            "loop",
            "algorithms/shared/test_fedlora.py",
            "test_flexlora_shrinks_what_few_clients_have_and_raflora_does_not",
        ),
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
        oracle=Oracle(
            "loop",
            "algorithms/shared/test_fedlora.py",
            "test_frlora_merges_what_was_gained_and_returns_to_the_weights_own_factors",
        ),
        beside=lowrank.principal,
    ),
    Row(
        "fedloru-list",
        fedloru,
        "scratch",
        _list,
        "A and B; a merge is broadcast every tau rounds",
        "nothing",
        "FedLoRU's list for LLaMA (arXiv 2409.12371, rebuttal)",
        oracle=Oracle(
            "another row", "combine/test_listing.py", "test_a_list_computes_what_reinit_computes"
        ),
        beside=combine.accumulate_list,
        merges=True,
    ),
    Row(
        "cola",
        centralised,
        "factors",
        _cola,
        "gradients; a merge is broadcast every tau rounds",
        "nothing",
        "COLA, on all data in one place: Xia et al., arXiv 2401.04151",
        oracle=Oracle(
            "another row",
            "algorithms/shared/test_fedlora.py",
            "test_cola_is_fedloru_of_one_client_with_all_the_data",
        ),
        beside=combine.accumulate,
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
        oracle=Oracle(
            "another row", "combine/test_forms.py", "test_fedpara_is_fedavg_over_both_pairs"
        ),
        beside=forms,
    ),
    Row(
        "pfedpara",
        fedper,
        "scratch",
        _pfedpara,
        "the first pair, W = (A_1 B_1) o (A_2 B_2 + 1)",
        "the second pair",
        "Nam et al., ICLR 2022",
        oracle=Oracle(
            "another row",
            "combine/test_forms.py",
            "test_clients_of_pfedpara_keep_the_second_pair_and_send_the_first",
        ),
        beside=forms,
    ),
    Row(
        "fedsb",
        fedavg,
        "factors",
        _fedsb,
        "a core R of each layer, W + s A R B",
        "nothing",
        "Fed-SB, arXiv 2502.15436 (here with W's own directions)",
        oracle=Oracle(
            "closed form",
            "combine/test_forms.py",
            "test_the_mean_of_cores_is_the_mean_of_the_products",
        ),
        exact=True,
        beside=forms,
    ),
    Row(
        "ravan",
        ravan,
        "factors",
        lambda task, s: ravan(task, s.work, heads=1, client_optimizer=s.optimizer),
        "a core H_i of each head, W + s sum_i s_i A_i H_i B_i",
        "nothing",
        "Raje et al., NeurIPS 2025",
        oracle=Oracle(
            "loop", "algorithms/shared/test_ravan.py", "test_two_rounds_are_the_papers_loop"
        ),
        exact=True,
    ),
    Row(
        "fedhm",
        fedhm,
        "scratch",
        lambda task, s: fedhm(task, s.work, client_optimizer=s.optimizer, ranks=s.ranks),
        "the r_k best components of W, and their product back",
        "nothing",
        "Yao et al., arXiv 2111.14655",
        oracle=Oracle(
            "loop", "algorithms/shared/test_fedhm.py", "test_two_rounds_are_the_papers_loop"
        ),
    ),
    Row(
        "fedhm-decay",
        fedhm,
        "scratch",
        lambda task, s: fedhm(
            task, s.work, client_optimizer=s.optimizer, ranks=s.ranks, decay=DECAY
        ),
        "the r_k best components of W, and their product back",
        "nothing",
        "Yao et al., arXiv 2111.14655, with its code's decay of the product",
        oracle=Oracle(
            "closed form",
            "algorithms/shared/test_fedhm.py",
            "test_the_decay_shrinks_the_product_and_not_the_factors_alone",
        ),
    ),
)
