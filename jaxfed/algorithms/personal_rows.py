"""Rows of the zoo whose clients keep factors of their own."""

import optax

from jaxfed.algorithms.families import MERGES
from jaxfed.algorithms.general.fedper import fedper
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
from jaxfed.algorithms.row import Row

PERSONAL = (
    Row(
        "pfedloru",
        pfedloru,
        "scratch",
        lambda task, s: pfedloru(task, s.work, **MERGES, rank=1, **s.own),
        "A and B; a merge is broadcast every tau rounds",
        "factors of its own",
        "Park and Klabjan, arXiv 2409.12371",
    ),
    Row(
        "pf2lora",
        pf2lora,
        "factors",
        lambda task, s: pf2lora(
            task,
            s.work,
            rank=1,
            inner_rate=s.rate,
            upper_optimizer=s.sgd,
            keep_moments=False,
            personal_head=False,
        ),
        "A and B",
        "factors of its own",
        "Hao et al., arXiv 2503.03920",
    ),
    Row(
        "pfedlora",
        pfedlora,
        "factors",
        lambda task, s: pfedlora(task, s.work, rank=1, **s.own),
        "A and B",
        "factors of its own",
        "Yi et al., arXiv 2310.13283",
    ),
    Row(
        "fdlora",
        fdlora,
        "factors",
        lambda task, s: fdlora(
            task,
            s.work,
            rounds=max(1, s.rounds - 2),
            sync=2,
            personal_work=s.own_work,
            personal_optimizer=s.sgd,
            inner_optimizer=s.sgd,
            outer_optimizer=optax.sgd(0.7, momentum=0.9, nesterov=True),
            shots=s.work.batch_size,
            search=8,
        ),
        "A and B",
        "factors of its own and two weights",
        "Qi et al., arXiv 2406.07925",
    ),
    Row(
        "feddpa-f",
        feddpa_f,
        "factors",
        lambda task, s: feddpa_f(task, s.work, rounds=max(1, s.rounds // 2), a=0.4, **s.own),
        "A and B, and nothing after the federation",
        "its change of theta",
        "Yang et al., NeurIPS 2024",
    ),
    Row(
        "feddpa-t",
        feddpa_t,
        "factors",
        lambda task, s: feddpa_t(task, s.work, rank=s.rank, a=0.4, **s.own),
        "A and B",
        "factors of its own",
        "Yang et al., NeurIPS 2024",
    ),
    Row(
        "fedsa",
        fedsa,
        "factors",
        lambda task, s: fedsa(task, s.work, client_optimizer=s.sgd),
        "A",
        "B and the head",
        "Guo et al., ICLR 2025",
    ),
    Row(
        "feddpa-instances",
        feddpa_instances,
        "factors",
        lambda task, s: feddpa_instances(task, s.work, rank=s.rank, a=0.4, instances=3, **s.own),
        "A and B",
        "factors of its own and features of some examples",
        "Yang et al., NeurIPS 2024: weights for each input",
    ),
    Row(
        "feddat",
        feddat,
        "factors",
        lambda task, s: feddat(
            task,
            s.work,
            rank=s.rank,
            distillation=1.0,
            temperature=3.0,
            client_optimizer=s.sgd,
        ),
        "A and B",
        "factors of its own",
        "Chen et al., AAAI 2024",
    ),
    Row(
        "fedalt",
        fedalt,
        "factors",
        lambda task, s: fedalt(task, s.work, clients=s.clients, client_optimizer=s.sgd),
        "the mean of all clients' A and B down, a client's A and B up",
        "factors of its own and routers",
        "Bian et al., AAAI 2026",
    ),
    Row(
        "fedms",
        fedms,
        "factors",
        lambda task, s: fedms(task, s.work, rounds=max(1, s.rounds // 2), **s.own),
        "A and B, then routers",
        "factors of its own",
        "FedMS, or FedFMSL: Wu et al., arXiv 2312.15926",
    ),
    Row(
        "pftt",
        fedper,
        "factors",
        lambda task, s: fedper(task, s.work, personal="^factors/", client_optimizer=s.sgd),
        "weights trained whole, such as bottleneck adapters",
        "A and B",
        "Jiang et al., arXiv 2404.13238",
    ),
)
