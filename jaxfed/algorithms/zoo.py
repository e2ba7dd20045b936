"""The zoo: a table with one row for each method. Docs, configs and tests read it.

A new algorithm touches three places: its file, its row and its name here, and its test. Rows that
differ in one choice alone stand in `families` and `averaged_rows`, those whose clients keep a model
or factors in `personal_rows`.
"""

from jaxfed import combine
from jaxfed.algorithms.averaged_rows import ARMS, COMPRESSED, OPTIMIZERS, ROBUST, SPARSE
from jaxfed.algorithms.families import AGGREGATED, CHAINS, FORMS
from jaxfed.algorithms.general.apfl import apfl
from jaxfed.algorithms.general.centralised import centralised
from jaxfed.algorithms.general.ditto import ditto
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.algorithms.general.feddyn import feddyn
from jaxfed.algorithms.general.fedlin import fedlin
from jaxfed.algorithms.general.fedopt import fedopt
from jaxfed.algorithms.general.fedper import fedper
from jaxfed.algorithms.general.fedprox import fedprox
from jaxfed.algorithms.general.fedrep import fedrep
from jaxfed.algorithms.general.perfedavg import perfedavg
from jaxfed.algorithms.general.scaffold import scaffold
from jaxfed.algorithms.personal.fdlora import fdlora
from jaxfed.algorithms.personal.fedalt import fedalt
from jaxfed.algorithms.personal.feddat import feddat
from jaxfed.algorithms.personal.feddpa_f import feddpa_f
from jaxfed.algorithms.personal.feddpa_instances import feddpa_instances
from jaxfed.algorithms.personal.feddpa_t import feddpa_t
from jaxfed.algorithms.personal.fedms import fedms
from jaxfed.algorithms.personal.fedsa import fedsa
from jaxfed.algorithms.personal.pf2lora import pf2lora
from jaxfed.algorithms.personal.pfedlora import pfedlora
from jaxfed.algorithms.personal.pfedloru import pfedloru
from jaxfed.algorithms.personal_rows import KEEPING, PERSONAL
from jaxfed.algorithms.row import Oracle, Row
from jaxfed.algorithms.shared.fedhm import fedhm
from jaxfed.algorithms.shared.fedlora import fedlora
from jaxfed.algorithms.shared.fedloru import fedloru
from jaxfed.algorithms.shared.florist import florist
from jaxfed.algorithms.shared.hetlora import hetlora
from jaxfed.algorithms.shared.lora_a2 import lora_a2
from jaxfed.algorithms.shared.mfedloru import mfedloru
from jaxfed.algorithms.shared.ravan import ravan
from jaxfed.algorithms.shared.sa_fedlora import sa_fedlora

__all__ = [
    "apfl",
    "centralised",
    "ditto",
    "fdlora",
    "fedalt",
    "fedavg",
    "feddat",
    "feddpa_f",
    "feddpa_instances",
    "feddpa_t",
    "feddyn",
    "fedhm",
    "fedlin",
    "fedlora",
    "fedloru",
    "fedms",
    "fedopt",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsa",
    "florist",
    "hetlora",
    "lora_a2",
    "mfedloru",
    "perfedavg",
    "pf2lora",
    "pfedlora",
    "pfedloru",
    "ravan",
    "sa_fedlora",
    "scaffold",
]


ROWS = (
    Row(
        "fedavg",
        fedavg,
        "any",
        lambda task, s: fedavg(task, s.work, client_optimizer=s.optimizer),
        "theta",
        "nothing",
        "McMahan et al., AISTATS 2017",
        oracle=Oracle(
            "closed form",
            "algorithms/general/test_fedavg.py",
            "test_one_local_full_batch_step_is_centralised_gradient_descent",
        ),
    ),
    Row(
        "fedlora",
        fedavg,
        "factors",
        lambda task, s: fedavg(task, s.work, client_optimizer=s.optimizer),
        "A and B",
        "nothing",
        "FedAvg over LoRA's factors (HOMLoRA in arXiv 2503.03920)",
        oracle=Oracle(
            "another row",
            "algorithms/shared/test_fedlora.py",
            "test_without_a_rule_it_is_fedavg_over_the_factors",
        ),
    ),
    Row(
        "fedprox",
        fedprox,
        "any",
        lambda task, s: fedprox(task, s.work, mu=0.5, client_optimizer=s.optimizer),
        "theta",
        "nothing",
        "Li et al., MLSys 2020",
        oracle=Oracle(
            "closed form",
            "algorithms/general/test_fedprox.py",
            "test_a_client_ends_at_the_proximal_point",
        ),
    ),
    Row(
        "scaffold",
        scaffold,
        "any",
        lambda task, s: scaffold(task, s.work, learning_rate=s.rate, clients=s.clients),
        "theta and a control variate",
        "a control variate",
        "Karimireddy et al., ICML 2020",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_scaffold.py",
            "test_rounds_with_partial_participation_are_those_of_the_paper",
        ),
    ),
    Row(
        "feddyn",
        feddyn,
        "any",
        lambda task, s: feddyn(
            task, s.work, penalty=0.5, clients=s.clients, client_optimizer=s.optimizer
        ),
        "theta",
        "its gradient, h_k",
        "Acar et al., ICLR 2021",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_feddyn.py",
            "test_rounds_with_partial_participation_are_those_of_the_paper",
        ),
    ),
    Row(
        "fedlin",
        fedlin,
        "any",
        lambda task, s: fedlin(task, s.work, client_optimizer=s.optimizer),
        "theta, and gradients both ways",
        "nothing",
        "Mitra et al., NeurIPS 2021",
        oracle=Oracle(
            "loop", "algorithms/general/test_fedlin.py", "test_a_round_is_that_of_the_paper"
        ),
    ),
    *OPTIMIZERS,
    Row(
        "centralised",
        centralised,
        "any",
        lambda task, s: centralised(task, batch_size=s.work.batch_size, optimizer=s.optimizer),
        "gradients",
        "nothing",
        "the reference: all data in one place",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_centralised.py",
            "test_rounds_with_all_clients_are_steps_of_the_optimizer_on_the_union",
        ),
    ),
    *KEEPING,
    Row(
        "fedloru",
        fedloru,
        "scratch",
        lambda task, s: fedloru(task, s.work, **s.merges, client_optimizer=s.optimizer),
        "A and B; a merge is broadcast every tau rounds",
        "nothing",
        "Park and Klabjan, arXiv 2409.12371",
        oracle=Oracle(
            "loop",
            "combine/test_combine.py",
            "test_the_base_is_what_it_was_and_the_sum_of_the_merged_products",
        ),
        merges=True,
    ),
    *AGGREGATED,
    *CHAINS,
    *FORMS,
    Row(
        "mfedloru",
        mfedloru,
        "scratch",
        lambda task, s: mfedloru(
            task,
            s.work,
            **s.merges,
            ranks=s.ranks,
            alpha=float(s.rank),
            client_optimizer=s.optimizer,
        ),
        "A and B down, factors of factors up",
        "nothing",
        "Park and Klabjan, arXiv 2409.12371",
        oracle=Oracle(
            "closed form",
            "algorithms/shared/test_mfedloru.py",
            "test_the_server_recovers_the_mean_of_the_clients_a_and_of_their_b",
        ),
        merges=True,
    ),
    Row(
        "hetlora",
        hetlora,
        "factors",
        lambda task, s: hetlora(
            task,
            s.work,
            least=1,
            most=s.rank,
            gamma=0.9,
            penalty=0.1,
            client_optimizer=s.optimizer,
            ranks=s.ranks,
        ),
        "r_k components of A and B",
        "its rank",
        "Cho et al., EMNLP 2024",
        oracle=Oracle(
            "loop", "algorithms/shared/test_hetlora.py", "test_rounds_are_those_of_the_paper"
        ),
    ),
    *PERSONAL,
    Row(
        "fedloru-scaffold",
        scaffold,
        "scratch",
        lambda task, s: combine.accumulate(
            scaffold(task, s.work, learning_rate=s.rate, clients=s.clients), **s.merges
        ),
        "A and B and a control variate of each",
        "a control variate",
        "FedLoRU around SCAFFOLD (arXiv 2409.12371, rebuttal)",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_scaffold.py",
            "test_rounds_with_partial_participation_are_those_of_the_paper",
        ),
        beside=combine.accumulate,
        merges=True,
    ),
    *COMPRESSED,
    *ROBUST,
    *SPARSE,
)


TABLE = (*ROWS, *ARMS)
"""All rows. FedPETuning's arms are FedAvg of a part of an encoder: what holds for FedAvg with any
theta is tested of the others."""


def named(name: str) -> Row:
    """The row of this name, of those that need no encoder; ValueError if there is none."""
    for row in ROWS:
        if row.name == name:
            return row
    if any(row.name == name for row in ARMS):
        raise ValueError(f"{name} trains a part of an encoder; use configs/zoo/text.py")
    raise ValueError(f"the zoo has no row {name!r}; `jaxfed zoo` lists them")


def on_encoder(name: str) -> Row:
    """The row of an arm of FedPETuning, or another one; ValueError if there is none."""
    return next((row for row in ARMS if row.name == name), None) or named(name)


def fine_tuning(method: str) -> Row:
    """The row of that name, which may begin at given weights.

    ValueError, with the names that there are, for another one.
    """
    rows = {one.name: one for one in ROWS if one.fine_tunes}
    if method not in rows:
        raise ValueError(f"method={method!r}; use one of {', '.join(rows)}")
    return rows[method]
