"""jaxfed's Hessian probes beside a PyTorch tool's, on the same weights and examples.

    pip install curvlinops-for-pytorch
    python benchmarks/costs/hessian_torch.py [--write]

An MLP 64-32-10 after some steps of gradient descent on scikit-learn's digits, in double precision;
the loss is the mean cross-entropy of 500 examples over all weights. curvlinops gives products with
the Hessian, SciPy's ARPACK their largest eigenvalues, and curvlinops' Hutchinson the squared
Frobenius norm, of which its standard error comes from ten estimates of as many probes as ours. At
this size curvlinops' products with every unit vector also give the norm itself.
"""

import argparse
from functools import partial
from typing import Any

import curvlinops
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
import torch
from jax.flatten_util import ravel_pytree
from measuring import RESULTS, timing

from jaxfed import models, tasks
from jaxfed.analysis import operators, spectrum
from jaxfed.data import sources

EXAMPLES, HIDDEN, STEPS, RATE = 500, 32, 30, 0.5
COUNT, DEPTH, PROBES = 5, 40, 30


def trained() -> tuple[dict, dict, Any]:
    """(examples, weights, the task), the same for both."""
    found = sources.digits().train
    image = found["image"][:EXAMPLES].reshape(EXAMPLES, -1) / 16
    examples = {"image": image, "label": found["label"][:EXAMPLES].astype(np.int32)}
    made = tasks.classification(models.MLP((HIDDEN,), 10), examples)
    base, theta = jax.tree.map(jnp.float64, made.init(jax.random.key(0)))
    batch = {**examples, "mask": jnp.ones(EXAMPLES)}
    grad = jax.jit(jax.grad(lambda x: made.loss(base, x, batch, jax.random.key(0))))
    for _ in range(STEPS):
        theta = jax.tree.map(lambda w, g: w - RATE * g, theta, grad(theta))
    return examples, theta, made


def ours(examples: dict, theta: Any, made: Any) -> dict:
    k = operators.union(jax.tree.map(jnp.asarray, examples), jax.random.key(0))

    @jax.jit
    def measured(theta):
        apply = operators.hessian(partial(made.loss, {}), theta, k, 100)
        key = jax.random.key(1)
        return spectrum.measure(apply, theta, key, depth=DEPTH, probes=PROBES)[0]

    @jax.jit
    def product(v):
        _, unravel = ravel_pytree(theta)
        return ravel_pytree(operators.hessian(partial(made.loss, {}), theta, k, 100)(unravel(v)))[0]

    return {"found": measured(theta), "product": product, "size": ravel_pytree(theta)[0].size}


def order(theta: Any) -> list[tuple[str, bool]]:
    """The weights in the order in which ours stand in a vector, and whether torch transposes."""
    return [(path, path.endswith("kernel")) for path in sorted(theta.full)]


def theirs(examples: dict, theta: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """(curvlinops' Hessian, its parameters in our order)."""
    first, last = torch.nn.Linear(64, HIDDEN), torch.nn.Linear(HIDDEN, 10)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), last).double()
    named = {"dense_0": first, "head": last}
    parameters = []
    for path, transposed in order(theta):
        layer, kind = path.split("/")
        parameter = getattr(named[layer], "weight" if kind == "kernel" else "bias")
        w = np.array(theta.full[path])
        parameter.data = torch.from_numpy(w.T.copy() if transposed else w)
        parameters.append(parameter)
    x = torch.from_numpy(np.array(examples["image"]))
    y = torch.from_numpy(np.array(examples["label"], np.int64))
    loss = torch.nn.CrossEntropyLoss(reduction="mean")
    return curvlinops.HessianLinearOperator(model, loss, parameters, [(x, y)]), parameters


def as_ours(vector: np.ndarray, theta: Any, back: bool = False) -> np.ndarray:
    """A vector in their order of numbers as ours, or `back`: kernels are transposed."""
    parts, at = [], 0
    for path, transposed in order(theta):
        shape = theta.full[path].shape
        size = int(np.prod(shape))
        part = vector[at : at + size]
        if transposed:
            part = part.reshape(shape if back else shape[::-1]).T.reshape(-1)
        parts.append(part)
        at += size
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    start = timing.machine()
    examples, theta, made = trained()
    mine, (hessian, _) = ours(examples, theta, made), theirs(examples, theta)
    found = mine["found"]

    v = np.random.default_rng(0).normal(size=mine["size"])
    there = (hessian @ torch.from_numpy(as_ours(v, theta, back=True))).numpy()
    here = np.asarray(mine["product"](jnp.asarray(v)))
    apart = np.linalg.norm(here - as_ours(there, theta)) / np.linalg.norm(here)

    operator = hessian.to_scipy()
    values = scipy.sparse.linalg.eigsh(operator, COUNT, return_eigenvectors=False, which="LM")
    values = values[np.argsort(-np.abs(values))]
    torch.manual_seed(0)
    squares = [float(curvlinops.hutchinson_squared_fro(hessian, PROBES)) for _ in range(10)]
    squared, error = np.mean(squares), np.std(squares, ddof=1) / np.sqrt(10)
    whole = sum(
        float(torch.sum((hessian @ part) ** 2))
        for part in torch.eye(mine["size"], dtype=torch.float64).split(200, dim=1)
    )

    lines = [
        f"* {mine['size']:,} weights, {EXAMPLES} examples; depth {DEPTH}, {PROBES} probes",
        f"* one product H v: relative difference {apart:.1e}",
        "",
        "| | jaxfed | error stated | curvlinops | error | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i in range(COUNT):
        a, e, b = float(found.values[i]), float(found.errors[i]), values[i]
        lines.append(f"| eigenvalue {i + 1} | {a:.8f} | {e:.1e} | {b:.8f} | - | {a - b:.1e} |")
    a, e = float(found.squared), float(found.squared_error)
    cells = [f"{a:.4f}", f"{e:.4f}", f"{squared:.4f}", f"{error:.4f}", f"{a - squared:.4f}"]
    lines.append(f"| squared Frobenius norm | {' | '.join(cells)} |")
    cells = [f"{a:.4f}", f"{e:.4f}", f"{whole:.4f}", "exact", f"{a - whole:.4f}"]
    lines.append(f"| the same | {' | '.join(cells)} |")
    a, e, b = float(found.stable_rank), float(found.stable_rank_error), whole / values[0] ** 2
    cells = [f"{a:.5f}", f"{e:.5f}", f"{b:.5f}", "exact", f"{a - b:.5f}"]
    lines.append(f"| stable rank | {' | '.join(cells)} |")
    print(*lines, sep="\n")
    if asked.write:
        head = timing.listed({**start, "command": timing.command()})
        (RESULTS / "hessian_torch.md").write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
