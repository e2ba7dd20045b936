"""How a flax.linen model is called in training and evaluation, checked by tracing it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import errors

from jaxfed import lowrank, trees
from jaxfed.lowrank import Theta
from jaxfed.lowrank.factors import STATISTICS
from jaxfed.lowrank.interception import among_real

SWITCHES = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""{argument of a model: its value in training}."""


def options(model: nn.Module, train: bool, mask: Any) -> dict[str, Any]:
    """The arguments that `model` takes by name: its switches, and `mask` [B]."""
    known = {name: train == value for name, value in SWITCHES.items()} | {"mask": mask}
    accepted = inspect.signature(model.__call__).parameters
    return {name: value for name, value in known.items() if name in accepted}


def check_kind(model: Any) -> None:
    """Raises TypeError if `model` is no flax.linen module."""
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}; give one, {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; give a flax.linen.Module (and of a flax.nnx "
            "module, the same layers in flax.linen)"
        )


def output(model: nn.Module, x: Sequence[Any], *, keeps: bool = True) -> Any:
    """The shape of the model's output for inputs x, which may be shapes.

    Raises ValueError if it cannot be called with them, returns more than one array, convolves over
    axes other than an image's height and width, or keeps running statistics that are no numbers,
    have a parameter's path, or are kept although it must not (`keeps`).
    """
    init = partial(model.init_with_output, **options(model, False, np.ones(x[0].shape[0])))
    with nn.intercept_methods(_looking_at_images(x[0].shape)):
        found, variables = _traced(init, x, jax.random.key(0), *x)
    statistics = trees.by_path(variables.get(STATISTICS, {}))
    if statistics and not keeps:
        raise ValueError(_KEEPS.format("running statistics"))
    for path, s in statistics.items():
        if not np.issubdtype(s.dtype, np.floating):
            raise ValueError(_KEEPS.format(f"{path} of {s.dtype}"))
        if path in trees.by_path(variables["params"]):
            raise ValueError(f"{path} is a parameter and a running statistic; rename one of them")
    if not hasattr(found, "shape"):
        raise ValueError(
            f"the model returns a {type(found).__name__}; wrap it in a module that returns its "
            "predictions alone, an array [B, n]"
        )
    return found


def transformed(name: str, change: Callable, x: Any, key: jax.Array) -> Any:
    """The shape of change(x, key); raises ValueError if it cannot be called so."""
    try:
        return jax.eval_shape(change, x, key)
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name} cannot be called with {x.dtype} {x.shape} and a key: {_first(error)}; give a "
            "function of both, such as images.random_flip()"
        ) from error


def check_weights(
    model: nn.Module, base: Mapping[str, Any], theta: Theta, x: Sequence[Any]
) -> None:
    """Raises ValueError if the model cannot be called with inputs x and these weights.

    All may be shapes.
    """
    call = partial(_call, model, False, options(model, False, np.ones(x[0].shape[0])))
    _traced(call, x, {**base, **theta.full}, *x)


def check(model: nn.Module, base: Mapping[str, Any], theta: Theta, x: Sequence[Any]) -> None:
    """Raises ValueError if dropout does not act in training and only there, or factors not merge.

    `base`, `theta` and the inputs x may be shapes.
    """
    mask, params = np.ones(x[0].shape[0]), {**base, **theta.full}
    for train in (True, False):
        acts: dict[str, bool] = {}
        call = partial(_call, model, train, options(model, train, mask))
        with nn.intercept_methods(_noting_dropout(acts)):
            _traced(call, x, params, *x)
        if wrong := [path for path, acted in acts.items() if acted != train]:
            when = "never acts in training" if train else "also acts in evaluation"
            raise ValueError(
                f"{wrong[0]}: dropout {when}; switch it by an argument of the model's __call__ "
                f"that is called {', '.join(SWITCHES)} (there: 'deterministic=not train')"
            )
    lowrank.check(model, base, theta, *x, **options(model, False, mask))


def _call(model: nn.Module, train: bool, named: dict, params: Mapping, *x: Any) -> Any:
    held = lowrank.variables(params)
    if not train:
        return model.apply(held, *x, **named)
    changes = [STATISTICS] if STATISTICS in held else False
    with nn.intercept_methods(among_real(np.ones(x[0].shape[0]))):
        return model.apply(held, *x, rngs={"dropout": jax.random.key(0)}, mutable=changes, **named)


_KEEPS = (
    "the model keeps {} beside its parameters, which this task's clients do not share; use "
    "nn.LayerNorm or nn.GroupNorm"
)


def _traced(function: Callable, x: Sequence[Any], *arguments: Any) -> Any:
    """The shapes of function(*arguments); what a model raises there becomes a sentence."""
    try:
        return jax.eval_shape(function, *arguments)
    except errors.InvalidRngError as error:
        raise ValueError(
            f"the model draws random numbers that it is not given ({_first(error)}): in training "
            'there is the key stream "dropout", in evaluation none'
        ) from error
    except errors.ModifyScopeVariableError as error:
        raise ValueError(
            f"the model changes what it keeps in evaluation too ({_first(error)}); switch it by an "
            f"argument of the model's __call__ that is called {', '.join(SWITCHES)} (there: "
            "'use_running_average=not train')"
        ) from error
    except errors.ScopeCollectionNotFound as error:
        raise ValueError(_KEEPS.format(f"variables ({_first(error)})")) from error
    except errors.ScopeParamShapeError as error:
        raise ValueError(
            f"the model has weights for inputs of another shape than {_shapes(x)} "
            f"({_first(error)}); make the task with such examples"
        ) from error
    except (TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"the model cannot be called with {_shapes(x)}: {_first(error)}; it gets the arrays "
            "named in `inputs` one by one, in that order (wrap a model of a dict in one that makes "
            "it)"
        ) from error


def _shapes(x: Sequence[Any]) -> str:
    return ", ".join(f"{one.dtype} {one.shape}" for one in x)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" (https://")[0]


def _noting_dropout(acts: dict[str, bool]) -> Callable:
    """An interceptor that notes {path: whether it acts} for every dropout of a rate above 0."""

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Dropout):
            rate, given = module.rate, args[1:2]
        elif isinstance(module, nn.MultiHeadDotProductAttention):
            rate, given = module.dropout_rate, ()
        else:
            return next_fun(*args, **kwargs)
        switches = (kwargs.get("deterministic"), *given, module.deterministic)
        quiet = next((s for s in switches if s is not None), None)
        if context.method_name == "__call__" and rate and quiet is not None:
            acts["/".join(module.path)] = not quiet
        return next_fun(*args, **kwargs)

    return interceptor


def _looking_at_images(shape: tuple[int, ...]) -> Callable:
    """An interceptor that refuses a convolution of the model's input if its layout is another."""

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Conv) and args and args[0].shape == shape:
            axes = 1 if isinstance(module.kernel_size, int) else len(module.kernel_size)
            if len(shape) == axes + 1:
                raise ValueError(
                    f"{'/'.join(module.path)} convolves examples {shape[1:]} without channels; "
                    "give them an axis at the end, x[..., None]"
                )
            if axes == 2 and _channels_first(shape):
                raise ValueError(
                    f"{'/'.join(module.path)} convolves images {shape[1:]} that seem to have their "
                    "channels first; give [n, H, W, C], np.moveaxis(x, 1, -1)"
                )
        return next_fun(*args, **kwargs)

    return interceptor


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether [n, C, H, W] is likelier than [n, H, W, C]."""
    _, first, second, last = shape
    return last > 4 and ((first == 3 != second) or (first == 1 and second == last))
