"""Rows of the zoo whose clients keep a model, a part of it, or factors of their own."""

import optax

from jaxfed.algorithms.general import perfedavg as meta
from jaxfed.algorithms.general.apfl import apfl
from jaxfed.algorithms.general.ditto import ditto
from jaxfed.algorithms.general.fedper import fedper
from jaxfed.algorithms.general.fedrep import fedrep
from jaxfed.algorithms.general.perfedavg import perfedavg
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
from jaxfed.algorithms.row import Oracle, Row

KEEPING = (
    Row(
        "ditto",
        ditto,
        "any",
        lambda task, s: ditto(task, s.work, lam=0.5, **s.own),
        "theta",
        "a theta of its own",
        "Li et al., ICML 2021",
        oracle=Oracle(
            "closed form",
            "algorithms/general/test_ditto.py",
            "test_a_personal_model_goes_to_the_proximal_point_of_the_theta_received",
        ),
    ),
    Row(
        "fedper",
        fedper,
        "any",
        lambda task, s: fedper(task, s.work, personal=s.personal, client_optimizer=s.optimizer),
        "the shared part of theta",
        "the personal part of theta",
        "Arivazhagan et al., arXiv 1912.00818",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_fedper.py",
            "test_rounds_are_those_of_a_loop_that_keeps_one_part_apart",
        ),
    ),
    Row(
        "fedbn",
        fedper,
        "norms",
        lambda task, s: fedper(task, s.work, personal="norm", client_optimizer=s.optimizer),
        "all but the batch norms",
        "its batch norms, with their running statistics",
        "Li et al., ICLR 2021: FedPer of the norms",
        oracle=Oracle(
            "loop",
            "tasks/test_running_statistics.py",
            "test_fedbn_keeps_the_norms_with_their_statistics",
        ),
    ),
    Row(
        "fedrep",
        fedrep,
        "any",
        lambda task, s: fedrep(task, s.work, personal=s.personal, **s.own),
        "the shared part of theta",
        "the personal part of theta",
        "Collins et al., ICML 2021",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_fedrep.py",
            "test_the_head_is_trained_to_its_end_before_the_body_moves",
        ),
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
            client_optimizer=s.optimizer,
            personal_optimizer=s.optimizer,
        ),
        "theta",
        "a theta of its own and its share",
        "Deng et al., arXiv 2003.13461",
        oracle=Oracle(
            "loop",
            "algorithms/general/test_apfl.py",
            "test_all_three_move_at_once_in_every_local_step",
        ),
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
            client_optimizer=s.optimizer,
            personal_work=s.own_work,
        ),
        "theta",
        "the change made by its own step",
        "Fallah et al., NeurIPS 2020",
        oracle=Oracle(
            "closed form",
            "algorithms/general/test_perfedavg.py",
            "test_rounds_are_those_of_the_closed_form",
        ),
    ),
)
PERSONAL = (
    Row(
        "pfedloru",
        pfedloru,
        "scratch",
        lambda task, s: pfedloru(task, s.work, **s.merges, rank=s.personal_rank, **s.own),
        "A and B; a merge is broadcast every tau rounds",
        "factors of its own",
        "Park and Klabjan, arXiv 2409.12371",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_pfedloru.py",
            "test_rounds_with_merges_are_those_of_a_loop",
        ),
        merges=True,
    ),
    Row(
        "pf2lora",
        pf2lora,
        "factors",
        lambda task, s: pf2lora(
            task,
            s.work,
            rank=s.personal_rank,
            inner_rate=s.own_rate,
            upper_optimizer=s.optimizer,
            keep_moments=False,
            personal_head=False,
        ),
        "A and B",
        "factors of its own",
        "Hao et al., arXiv 2503.03920",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_pf2lora.py",
            "test_rounds_are_those_of_the_paper_and_of_its_ablations",
        ),
    ),
    Row(
        "pfedlora",
        pfedlora,
        "factors",
        lambda task, s: pfedlora(task, s.work, rank=s.personal_rank, **s.own),
        "A and B",
        "factors of its own",
        "Yi et al., arXiv 2310.13283",
        oracle=Oracle(
            "loop", "algorithms/personal/test_pfedlora.py", "test_rounds_are_those_of_a_loop"
        ),
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
            personal_optimizer=s.update(s.own_rate),
            inner_optimizer=s.optimizer,
            outer_optimizer=optax.sgd(0.7, momentum=0.9, nesterov=True),
            shots=s.work.batch_size,
            search=8,
        ),
        "A and B",
        "factors of its own and two weights",
        "Qi et al., arXiv 2406.07925",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_fdlora.py",
            "test_stage_one_averages_and_stage_two_takes_outer_steps_with_momentum",
        ),
    ),
    Row(
        "feddpa-f",
        feddpa_f,
        "factors",
        lambda task, s: feddpa_f(task, s.work, rounds=max(1, s.rounds // 2), a=0.4, **s.own),
        "A and B, and nothing after the federation",
        "its change of theta",
        "Yang et al., NeurIPS 2024",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_feddpa.py",
            "test_feddpa_f_is_fedavg_and_then_training_of_a_copy",
        ),
    ),
    Row(
        "feddpa-t",
        feddpa_t,
        "factors",
        lambda task, s: feddpa_t(task, s.work, rank=s.rank, a=0.4, **s.own),
        "A and B",
        "factors of its own",
        "Yang et al., NeurIPS 2024",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_feddpa.py",
            "test_feddpa_t_trains_the_local_adapter_in_the_mixture_and_the_global_one_alone",
        ),
    ),
    Row(
        "fedsa",
        fedsa,
        "factors",
        lambda task, s: fedsa(task, s.work, client_optimizer=s.optimizer),
        "A",
        "B and the head",
        "Guo et al., ICLR 2025",
        oracle=Oracle(
            "another row",
            "algorithms/personal/test_fedsa.py",
            "test_it_is_fedper_with_the_up_factors_personal",
        ),
    ),
    Row(
        "feddpa-instances",
        feddpa_instances,
        "factors",
        lambda task, s: feddpa_instances(task, s.work, rank=s.rank, a=0.4, instances=3, **s.own),
        "A and B",
        "factors of its own and features of some examples",
        "Yang et al., NeurIPS 2024: weights for each input",
        oracle=Oracle(
            "closed form",
            "algorithms/personal/test_feddpa.py",
            "test_instance_wise_weights_are_a_times_the_mean_cosine_to_what_a_client_has_seen",
        ),
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
            client_optimizer=s.optimizer,
        ),
        "A and B",
        "factors of its own",
        "Chen et al., AAAI 2024",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_feddat.py",
            "test_both_adapters_learn_from_labels_and_from_each_other",
        ),
    ),
    Row(
        "fedalt",
        fedalt,
        "factors",
        lambda task, s: fedalt(task, s.work, clients=s.clients, client_optimizer=s.optimizer),
        "the mean of all clients' A and B down, a client's A and B up",
        "factors of its own and routers",
        "Bian et al., AAAI 2026",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_fedalt.py",
            "test_each_client_sees_the_mean_of_all_others_also_of_those_not_drawn",
        ),
    ),
    Row(
        "fedms",
        fedms,
        "factors",
        lambda task, s: fedms(task, s.work, rounds=max(1, s.rounds // 2), **s.own),
        "A and B, then routers",
        "factors of its own",
        "FedMS, or FedFMSL: Wu et al., arXiv 2312.15926",
        oracle=Oracle(
            "loop",
            "algorithms/personal/test_fedms.py",
            "test_experts_and_routers_are_trained_after_the_first_stage",
        ),
    ),
    Row(
        "pftt",
        fedper,
        "factors",
        lambda task, s: fedper(task, s.work, personal="^factors/", client_optimizer=s.optimizer),
        "weights trained whole, such as bottleneck adapters",
        "A and B",
        "Jiang et al., arXiv 2404.13238",
        oracle=Oracle(
            "another row",
            "algorithms/general/test_fedper.py",
            "test_rounds_are_those_of_a_loop_that_keeps_one_part_apart",
        ),
    ),
)
