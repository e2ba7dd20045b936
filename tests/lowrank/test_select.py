"""A selection's values are checked where they are given."""

import jax
import numpy as np
import pytest

from jaxfed import lowrank, models
from jaxfed.lowrank import Select


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"base": "zeros"}, ValueError, "base='zeros'; use one of .*'keep', 'zero'"),
        ({"up": "rand"}, ValueError, "up='rand'; use one of .*'zero', 'random'"),
        ({"above": "no"}, ValueError, "above='no'; use one of .*'error', 'allow'"),
        ({"rank": 2.5}, TypeError, "rank=2.5 has the float 2.5; give whole numbers"),
        ({"rank": True}, TypeError, "the bool True"),
        ({"rank": "4"}, TypeError, "the str '4'"),
        ({"rank": 0}, ValueError, "a rank must be at least 1; got 0"),
        ({"rank": {"head": -1}}, ValueError, "at least 1; got {'head': -1}"),
        ({"rank": {"head": 1.5}}, TypeError, "the float 1.5"),
        ({"rank": {"*head": 1}}, ValueError, "a pattern of rank='.head' is no regular"),
        ({"rank": None, "fraction": np.nan}, ValueError, r"fraction=nan is not in \(0, 1\]"),
        ({"rank": None, "fraction": "half"}, TypeError, "fraction='half' is a str"),
        ({"alpha": 0}, ValueError, r"alpha=0 is not in \(0, inf\]; use a number"),
        ({"alpha": -1.0}, ValueError, "alpha=-1.0 is not in"),
        ({"alpha": np.nan}, ValueError, "alpha=nan is not in"),
        ({"alpha": np.inf}, ValueError, "alpha=inf is not in"),
        ({"alpha": "16"}, TypeError, "alpha='16' is a str; give a number"),
        ({"factors": "(kernel"}, ValueError, r"factors='\(kernel' is no regular expression"),
        ({"factors": "*kernel"}, ValueError, r'write "\.\*"'),
        ({"full": ["bias", "head"]}, TypeError, r'is a list; give one regular expression, "a\|b"'),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_given(options, error, match):
    with pytest.raises(error, match=match):
        Select(**{"factors": "kernel", "rank": 2, **options})


def test_numbers_of_numpy_are_numbers():
    x = np.ones((1, 8), np.float32)
    model = models.MLP((16,), 4)
    params = model.init(jax.random.key(0), x)["params"]
    for rank in (np.int64(2), {"kernel": np.int32(2)}):
        select = Select(factors="kernel", rank=rank, alpha=np.float32(4))
        _, theta = lowrank.split(params, lowrank.layers(model, x), select, jax.random.key(0))
        assert [(f.rank, f.scale) for f in theta.factors.values()] == [(2, 2.0)] * 2
        assert {type(f.scale) for f in theta.factors.values()} == {float}
