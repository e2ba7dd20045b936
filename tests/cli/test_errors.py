"""Which errors end in a sentence."""

import jax
import jax.numpy as jnp
import pytest

from jaxfed import local
from jaxfed.algorithms import centralised
from jaxfed.cli import errors, options


def raised(call, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any)
        call(*arguments)
    return caught.value


pytestmark = pytest.mark.quick

MODEL = """
import jax
import jax.numpy as jnp


def model(x):
    return jnp.zeros((2, 3)) @ x


def refuses(x):
    raise ValueError(
        f"{x} is too many"
    )
"""


@pytest.fixture
def config(tmp_path):
    return options.load(tmp_path / "mine.py", MODEL)


def test_what_jaxfed_raises_is_a_sentence():
    error = raised(local.Work, 0)
    assert errors.sentence(error) == str(error)
    assert errors.sentence(raised(open, "no such file"))


def test_what_a_config_raises_is_a_sentence_with_its_line(config):
    assert errors.sentence(raised(config.refuses, 3)).endswith("mine.py, line 11)")


def test_what_jax_raises_about_a_users_model_keeps_its_traceback(config):
    assert errors.sentence(raised(jax.jit(config.model), jnp.zeros(4))) == ""
    assert errors.sentence(raised(jax.grad(config.model), jnp.zeros(3))) == ""


def test_a_call_in_jaxfed_that_fails_keeps_its_traceback():
    """It is a mistake of ours, or of an algorithm of the user's own."""
    assert errors.sentence(raised(centralised, None)) == ""
