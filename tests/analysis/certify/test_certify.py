"""A certificate holds for right algorithms, and names what is wrong with planted ones."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from planted import PLANTED, exact

import jaxfed
from jaxfed import combine
from jaxfed.algorithms import fedavg, zoo
from jaxfed.analysis.certify import certificate, contract, information, measures, world
from jaxfed.analysis.certify.subject import Subject
from jaxfed.lowrank import restarts


@cache
def subject(name):
    def make(task, setting):
        return PLANTED.get(name, exact)(task, setting.work, setting.rate)

    return Subject(name, make, "factors")


def of_row(name):
    row = next(row for row in zoo.ROWS if row.name == name)
    return Subject(row.name, row.make, row.trains)


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("alpha / r is forgotten", measures.products, "alpha / r = 1.5 is forgotten"),
        ("the residual is transposed", measures.products, "1 times the transposed residual"),
        ("only the first client is averaged", contract.order, "takes one place's upload for all"),
        ("weights are forgotten", contract.inert, "without cohort.weight"),
        ("a personal state is averaged", contract.kept_apart, "it is averaged"),
        ("bytes are understated", contract.bytes_sent, "less than the upload holds"),
        ("a change of W is silent", contract.broadcast, "must receive a change of W"),
        ("weights trained whole shrink", contract.stands_still, "than training moves the model"),
    ],
)
def test_each_planted_fault_is_caught_by_name(name, line, words):
    found = line(subject(name))
    assert found.holds is False
    assert words in found.meaning, found


def test_averaging_the_first_client_alone_is_named_where_the_base_stays():
    def make(task, setting):
        rest = {"mean": planted.first, "residual": lambda r, scale: 0 * r}
        return exact(task, setting.work, setting.rate, **rest)

    found = measures.products(Subject("first", make, "factors"))
    assert found.holds is False
    assert found.meaning == "only the first client's factors are averaged"


def test_factors_that_cross_without_a_theta_are_measured_too():
    """Clients keep the weights that are trained whole, and get and send {path: factors}."""

    def make(task, setting):
        fed = exact(task, setting.work, setting.rate, residual=lambda r, scale: r.T)

        def run_round(server, cohort, for_each_client):
            def verb(client, base, message, cohort):
                def of_factors(base, factors, k):
                    reply = client(base, message._replace(factors=factors), k)
                    return reply._replace(upload=reply.upload.factors)

                reply = for_each_client(of_factors, base, message.factors, cohort)
                whole = jax.tree.map(lambda x: jnp.stack([0 * x] * len(cohort.id)), message.full)
                return reply._replace(upload=message._replace(full=whole, factors=reply.upload))

            return fed.run_round(server, cohort, verb)

        return fed._replace(run_round=run_round)

    found = measures.products(Subject("factors alone", make, "factors"))
    assert "1 times the transposed residual" in found.meaning


def test_the_whole_certificate_of_a_right_algorithm_holds():
    found = jaxfed.check(exact)
    assert found.holds, str(found)
    lines = {line.name: line for line in found.lines}
    assert len(lines) == len(contract.TRUTHS) + len(measures.MEASURES)
    assert lines["learning rate zero"].measured == "the model changes by 0.0e+00"
    assert lines["mean of the products"].holds
    assert "rotations are free" in lines["gauge (A R, R^-1 B)"].meaning
    assert all(line.measured in str(found) for line in found.lines)
    assert str(found).endswith("exact: the contract holds")


def test_a_certificate_that_is_broken_names_the_lines():
    broken = contract.bytes_sent(subject("bytes are understated"))
    found = certificate.Certificate("mine", (broken, contract.deploys(subject("right"))))
    assert not found.holds
    assert str(found).endswith("mine: the contract is broken: bytes declared = sent")


# ---------------------------------------------------------------------- the numbers


@cache
def looped_only(restart):
    def make(task, setting):
        inner = fedavg(task, setting.work, client_optimizer=optax.sgd(setting.rate))
        return combine.accumulate(inner, every=2, restart=restart)

    return Subject("merged", make, "scratch")


@pytest.mark.parametrize(("restart", "kept"), [(restarts.reinit, True), (restarts.keep, False)])
def test_a_merge_that_keeps_the_function_is_told_from_one_that_does_not(restart, kept):
    """With `keep` the product counts twice: the model changes by all that is folded."""
    found = measures.merges(looped_only(restart))
    assert found.holds is None
    assert (found.meaning == "the function is kept") == kept
    assert kept or "changes by 1.0e+00" in found.measured


@pytest.mark.full
@pytest.mark.parametrize("row", [r for r in zoo.ROWS if r.trains != "any"], ids=lambda r: r.name)
def test_the_zoo_says_exact_of_the_rows_that_are(row):
    found = measures.products(of_row(row.name))
    if row.name in CORES:
        assert (found.holds, row.exact) == (None, True)
    else:
        assert (found.holds is True) == row.exact, found


CORES = {"fedsb", "ravan"}  # exact by tests/combine/test_forms.py; they upload cores, no factors


@pytest.mark.parametrize(
    ("name", "where", "meaning"),
    [
        ("fedavg", "the optimum", "it stands still beside it"),
        ("fedlin", "the optimum", "none: it ends at this optimum"),
        ("scaffold", "the optimum of clients counted once", "none: it ends at this optimum"),
    ],
)
def test_the_fixed_point_is_told_from_both_optima(name, where, meaning):
    found = measures.fixed_point(of_row(name))
    assert f"of the way to {where} is left" in found.measured
    assert found.meaning == meaning


@pytest.mark.full
def test_what_cannot_be_measured_breaks_no_contract():
    """SCAFFOLD divides by its rate, and clients of FedPer keep the bias."""
    assert contract.stands_still(of_row("scaffold")).measured == "not measured"
    assert measures.fixed_point(of_row("fedper")).measured == "not measured"


def test_the_optima_of_the_world_have_no_gradient():
    count, n = world.COUNT, len(world.COUNT)
    x = np.concatenate([world.WORLD.examples["x"], np.ones((count.sum(), 1))], axis=1)
    y = world.WORLD.examples["y"].astype(float)
    shares = count / count.sum(), np.full(n, 1 / n)
    for share, w in zip(shares, measures.TARGETS.values(), strict=True):
        of_rows = np.repeat(share / count, count)[:, None]
        np.testing.assert_allclose(x.T @ (of_rows * (x @ w - y)), 0, atol=1e-9)


# ---------------------------------------------------------------------- information


def test_the_least_bytes_are_those_of_the_shortest_code():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(6, 5)).astype(np.float32)
    low = (rng.normal(size=(6, 1)) @ rng.normal(size=(1, 5))).astype(np.float32)
    sparse = np.where(np.arange(30).reshape(6, 5) < 3, dense, 0)
    levels = np.round(dense * 3).astype(np.float32)  # 16 levels at most, with a sign

    def least(x, previous=None):
        return information.least([x], previous)

    assert least(dense) == 30 * 4
    assert least(low) == (6 + 5 - 1) * 4
    assert least(sparse) == 3 * 4
    assert least(levels) <= 4 + 30 * 4 // 8
    assert least(0.25 * np.array([2, 4, 7, -7, 2, 4], np.float32)) <= 4 + 6 * 3 // 8 + 1
    assert least(np.zeros((6, 5))) == 0
    assert least(dense.astype(np.float16).astype(np.float32)) == 30 * 2
    assert least(dense + low, [dense]) <= (6 + 5 - 1) * 4  # the receiver kept the last one
    one = (sparse - dense,)  # a client of three numbers takes off the others of its message
    assert information.least([one], None, [NamedTuple("Message", [("x", Any)])(dense)]) == 3 * 4


# ---------------------------------------------------------------------- wrong input


def test_a_function_of_other_arguments_is_refused():
    with pytest.raises(TypeError, match="cannot be called with"):
        jaxfed.check(lambda task: None)
    with pytest.raises(TypeError, match="for want of 'size'; give a function"):
        jaxfed.check(lambda task, work, size: None)
    with pytest.raises(TypeError, match="give a function"):
        jaxfed.check("fedavg")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda task, work: 3, "TypeError: it returned a int; return an Algorithm"),
        (lambda task, work: 1 / 0, "ZeroDivisionError: division by zero"),
        (
            lambda task, work: exact(task, work, 1e30),
            "FloatingPointError: a number is not finite after 5 rounds; take a lower learning rate",
        ),
        (
            lambda task, work: exact(task, work)._replace(clients=3),
            "it is made for 3 clients and the check has 6",
        ),
    ],
)
def test_an_algorithm_that_cannot_run_gets_one_sentence(function, sentence):
    with pytest.raises(ValueError, match="cannot run on the check's task") as raised:
        jaxfed.check(function)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_row_for_another_model_gets_a_sentence():
    other = zoo.ROWS[0]._replace(trains="an encoder")
    with pytest.raises(ValueError, match="it trains 'an encoder', which the check's task does not"):
        certificate.check_row(other)
