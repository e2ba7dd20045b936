"""The certificates of the zoo, as measured: each holds, and fixed points are the closed forms."""

import json
import re

import certificates
import numpy as np
import pytest
from pages import ROOT

from jaxfed.algorithms import zoo
from jaxfed.analysis.certify import contract, world

FOUND = json.loads(certificates.FOUND.read_text(encoding="utf-8"))


def test_every_row_of_the_zoo_has_a_certificate_that_holds():
    assert list(FOUND) == [row.name for row in zoo.ROWS]
    for name, lines in FOUND.items():
        assert len(lines) == len(contract.TRUTHS) + 4, name
        assert not [each for each, holds, *_ in lines if holds is False], name


@pytest.mark.parametrize("name", certificates.FORMS)
def test_a_fixed_point_that_stands_still_is_the_closed_form(name):
    _, measured, meaning = certificates.line(FOUND[name], certificates.BIAS)
    far = certificates.LEFT.match(measured)
    form = certificates.FORMS[name]
    assert (far[2] == "the optimum") == form.by_examples
    if certificates.left(form) < 1e-9:
        assert meaning == "none: it ends at this optimum"
    else:
        assert meaning == "it stands still beside it"
        np.testing.assert_allclose(float(far[1]), certificates.left(form), rtol=0.06)


def test_one_step_has_no_bias():
    """Phi_k is then the same for all clients."""
    for form in certificates.FORMS.values():
        if not form.pull and not form.inner and form.scale == 1:
            once = world.QUADRATICS.work.__class__(9, steps=1)
            setting = world.QUADRATICS._replace(work=once)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(world, "QUADRATICS", setting)
                point = certificates.closed_form(form)
            np.testing.assert_allclose(point, world.optimum(certificates.shares(form)), atol=1e-8)


def test_the_tests_that_the_page_names_exist():
    page = (ROOT / "docs" / "results" / "bias.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) == 6
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
