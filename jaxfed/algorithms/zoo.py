"""The zoo: a table with one row for each method. Docs, configs and tests read it.

A new algorithm touches three places: its file, its row and its name here, and its test. Rows that
differ in one choice alone stand in `families`, those whose clients keep factors in `personal_rows`.
"""

from jaxfed import combine
from jaxfed.algorithms.families import (
    AGGREGATED,
    CHAINS,
    COMPRESSED,
    FORMS,
    MERGES,
    OPTIMIZERS,
    ROBUST,
    SPARSE,
)
from jaxfed.algorithms.general import perfedavg as meta
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
from jaxfed.algorithms.personal_rows import PERSONAL
from jaxfed.algorithms.row import Row
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
        lambda task, s: fedavg(task, s.work, client_optimizer=s.sgd),
        "theta",
        "nothing",
        "McMahan et al., AISTATS 2017",
    ),
    Row(
        "fedlora",
        fedavg,
        "factors",
        lambda task, s: fedavg(task, s.work, client_optimizer=s.sgd),
        "A and B",
        "nothing",
        "FedAvg over LoRA's factors (HOMLoRA in arXiv 2503.03920)",
    ),
    Row(
        "fedprox",
        fedprox,
        "any",
        lambda task, s: fedprox(task, s.work, mu=0.5, client_optimizer=s.sgd),
        "theta",
        "nothing",
        "Li et al., MLSys 2020",
    ),
    Row(
        "scaffold",
        scaffold,
        "any",
        lambda task, s: scaffold(task, s.work, learning_rate=s.rate, clients=s.clients),
        "theta and a control variate",
        "a control variate",
        "Karimireddy et al., ICML 2020",
    ),
    Row(
        "feddyn",
        feddyn,
        "any",
        lambda task, s: feddyn(
            task, s.work, penalty=0.5, clients=s.clients, client_optimizer=s.sgd
        ),
        "theta",
        "its gradient, h_k",
        "Acar et al., ICLR 2021",
    ),
    Row(
        "fedlin",
        fedlin,
        "any",
        lambda task, s: fedlin(task, s.work, client_optimizer=s.sgd),
        "theta, and gradients both ways",
        "nothing",
        "Mitra et al., NeurIPS 2021",
    ),
    *OPTIMIZERS,
    Row(
        "centralised",
        centralised,
        "any",
        lambda task, s: centralised(task, batch_size=s.work.batch_size, optimizer=s.sgd),
        "gradients",
        "nothing",
        "the reference: all data in one place",
    ),
    Row(
        "ditto",
        ditto,
        "any",
        lambda task, s: ditto(task, s.work, lam=0.5, **s.own),
        "theta",
        "a theta of its own",
        "Li et al., ICML 2021",
    ),
    Row(
        "fedper",
        fedper,
        "any",
        lambda task, s: fedper(task, s.work, personal="head/bias", client_optimizer=s.sgd),
        "the shared part of theta",
        "the personal part of theta",
        "Arivazhagan et al., arXiv 1912.00818",
    ),
    Row(
        "fedbn",
        fedper,
        "norms",
        lambda task, s: fedper(task, s.work, personal="norm", client_optimizer=s.sgd),
        "all but the batch norms",
        "its batch norms, with their running statistics",
        "Li et al., ICLR 2021: FedPer of the norms",
    ),
    Row(
        "fedrep",
        fedrep,
        "any",
        lambda task, s: fedrep(task, s.work, personal="head/bias", **s.own),
        "the shared part of theta",
        "the personal part of theta",
        "Collins et al., ICML 2021",
    ),
    Row(
        "apfl",
        apfl,
        "any",
        lambda task, s: apfl(
            task,
            s.work,
            share=0.5,
            share_rate=s.rate,
            client_optimizer=s.sgd,
            personal_optimizer=s.sgd,
        ),
        "theta",
        "a theta of its own and its share",
        "Deng et al., arXiv 2003.13461",
    ),
    Row(
        "perfedavg",
        perfedavg,
        "any",
        lambda task, s: perfedavg(
            task,
            s.work,
            inner_rate=0.1,
            gradient=meta.exact,
            minibatches=meta.same,
            client_optimizer=s.sgd,
            personal_work=s.own_work,
        ),
        "theta",
        "the change made by its own step",
        "Fallah et al., NeurIPS 2020",
    ),
    Row(
        "fedloru",
        fedloru,
        "scratch",
        lambda task, s: fedloru(task, s.work, **MERGES, client_optimizer=s.sgd),
        "A and B; a merge is broadcast every tau rounds",
        "nothing",
        "Park and Klabjan, arXiv 2409.12371",
    ),
    *AGGREGATED,
    *CHAINS,
    *FORMS,
    Row(
        "mfedloru",
        mfedloru,
        "scratch",
        lambda task, s: mfedloru(
            task, s.work, **MERGES, ranks=s.ranks, alpha=float(s.rank), client_optimizer=s.sgd
        ),
        "A and B down, factors of factors up",
        "nothing",
        "Park and Klabjan, arXiv 2409.12371",
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
            client_optimizer=s.sgd,
            ranks=s.ranks,
        ),
        "r_k components of A and B",
        "its rank",
        "Cho et al., EMNLP 2024",
    ),
    *PERSONAL,
    Row(
        "fedloru-scaffold",
        scaffold,
        "scratch",
        lambda task, s: combine.accumulate(
            scaffold(task, s.work, learning_rate=s.rate, clients=s.clients), **MERGES
        ),
        "A and B and a control variate of each",
        "a control variate",
        "FedLoRU around SCAFFOLD (arXiv 2409.12371, rebuttal)",
    ),
    *COMPRESSED,
    *ROBUST,
    *SPARSE,
)
