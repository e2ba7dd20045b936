"""`jaxfed check` for every row of the zoo, and closed forms of fixed points beside it.

    python benchmarks/claims/certificates.py            all rows; 12 minutes on one core
    python benchmarks/claims/certificates.py fedavg krum

Rows that are named are checked again, the others stay as the results have them. The tables of
docs/results/certificates.md and bias.md are made of the results by `python docs/write.py`.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxfed.algorithms import zoo
from jaxfed.analysis.certify import certificate, world
from jaxfed.cli.check import DEVICES

FOUND = Path(__file__).parent / "results" / "certificates.json"
BIAS = "fixed point's bias"
LEFT = re.compile(r"(\S+) of the way to (the optimum.*) is left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", nargs="*", help="names of rows of the zoo; all by default")
    asked = parser.parse_args().row
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = {row.name: row for row in zoo.ROWS}
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    for name in asked or rows:
        lines = certificate.check_row(rows[name]).lines
        found[name] = [list(line) for line in lines]
        kept = {n: found[n] for n in rows if n in found}
        FOUND.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(name, all(line.holds is not False for line in lines), flush=True)


# ---------------------------------------------------------------------- closed forms


class Form(NamedTuple):
    """A fixed point that a formula gives."""

    formula: str
    by_examples: bool  # clients count by their examples; False: each once
    pull: float = 0.0  # FedProx's mu
    inner: float = 0.0  # Per-FedAvg's alpha
    scale: float = 1.0  # s of a core between orthonormal A and B of full rank


MEAN = "sum p_k Phi_k (b_k - H_k w) = 0"
FORMS = {
    **dict.fromkeys(("fedavg", "ditto", "fedavg-ef21"), Form(MEAN, True)),
    "apfl": Form(f"{MEAN}, p_k = 1/N", False),
    "fedprox": Form(f"{MEAN}, Phi_k of H_k + mu", True, pull=0.5),
    "perfedavg": Form(f"{MEAN}, M_k = (I - alpha H_k)^2, p_k = 1/N", False, inner=0.1),
    "fedsb": Form(f"{MEAN}, M_k = s^2", True, scale=1.5),
    **dict.fromkeys(("centralised", "fedlin"), Form("the optimum", True)),
    **dict.fromkeys(("scaffold", "feddyn"), Form("the optimum", False)),
}


def closed_form(form: Form) -> np.ndarray:
    """The weights [inputs + 1, outputs] at which the mean of the clients' changes is zero.

    Client k's loss has the gradient H_k w - b_k. Its tau steps of rate eta from w, with the pull
    mu (v - w) and the metric M_k, change w by Phi_k (b_k - H_k w), where
    Phi_k = eta sum_{j < tau} (I - eta (M_k H_k + mu))^j M_k. M_k is (I - alpha H_k)^2 for
    Per-FedAvg, s^2 for Fed-SB (and 1 for the bias), and I for the others.
    """
    eye, steps = np.eye(world.SIDE + 1), world.QUADRATICS.work.steps or 0
    left, right = 0 * eye, np.zeros((world.SIDE + 1, world.SIDE))
    if form.formula == "the optimum":
        return world.optimum(shares(form))
    for share, (x, y) in zip(shares(form), clients(), strict=True):
        h, b = x.T @ x / len(x), x.T @ y / len(x)
        scaled = np.diag([*[form.scale**2] * world.SIDE, 1.0])
        metric = np.linalg.matrix_power(eye - form.inner * h, 2) @ scaled
        once = eye - world.RATE * (metric @ h + form.pull * eye)
        powers = sum(np.linalg.matrix_power(once, j) for j in range(steps))
        phi = share * world.RATE * powers @ metric
        left, right = left + phi @ h, right + phi @ b
    return np.linalg.solve(left, right)


def shares(form: Form) -> np.ndarray:
    """p_k of each client."""
    n = world.COUNT
    return n / n.sum() if form.by_examples else np.full(len(n), 1 / len(n))


def clients() -> list[tuple[np.ndarray, np.ndarray]]:
    """(inputs with a one [n, inputs + 1], targets [n, outputs]) of each client."""
    x, y = (world.WORLD.examples[name].astype(float) for name in ("x", "y"))
    ends = np.cumsum(world.COUNT)[:-1]
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return list(zip(np.split(x, ends), np.split(y, ends), strict=True))


def start() -> np.ndarray:
    """The weights before the first round, where all of them are trained."""
    theta = world.task("any", world.SIDE).init(jax.random.key(0))[1]
    kernel, bias = (np.asarray(theta.full[f"head/{name}"], float) for name in ("kernel", "bias"))
    return np.concatenate([kernel, bias[None]])


def left(form: Form) -> float:
    """The closed form's distance from the optimum, over that of the start."""
    optimum = world.optimum(shares(form))
    far = np.linalg.norm(closed_form(form) - optimum)
    return float(far / np.linalg.norm(start() - optimum))


# ---------------------------------------------------------------------- tables


def line(lines: list, name: str) -> tuple[bool | None, str, str]:
    """(holds, measured, meaning) of a certificate's line of this name."""
    return next(tuple(rest) for found, *rest in lines if found == name)


def certificates(found: Mapping[str, list]) -> str:
    """A row for each method: the contract, and the numbers of its kind."""
    table = ["| method | contract | mean of the products | gauge | merge |", "| --- " * 5 + "|"]
    for name, lines in found.items():
        broken = [each for each, holds, *_ in lines if holds is False]
        held = sum(holds is True for _, holds, *_ in lines)
        cells = [name, f"broken: {', '.join(broken)}" if broken else f"holds ({held} lines)"]
        for each in ("mean of the products", "gauge (A R, R^-1 B)", "function kept at a merge"):
            cells.append(line(lines, each)[2])
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, ""])


def bias(found: Mapping[str, list]) -> str:
    """A row for each method whose server has the model that clients run, the nearest first."""
    rows, family = [], {row.name: row.family for row in zoo.ROWS}
    for name, far, cells in _distances(found):
        if far is not None and family[name] != "personal":
            closed = f"{left(FORMS[name]):.1e}: {FORMS[name].formula}" if name in FORMS else ""
            rows.append((far, name, *cells, closed))
    table = ["| method | left | of the mean over | | closed form |", "| --- " * 5 + "|"]
    table += [f"| {' | '.join(cells)} |" for _, *cells in sorted(rows)]
    return "\n".join([*table, ""])


def shared_bias(found: Mapping[str, list]) -> str:
    """A row for every other method: of the model that its server has, or why it has none."""
    rows, family = [], {row.name: row.family for row in zoo.ROWS}
    for name, far, cells in _distances(found):
        if far is None or family[name] == "personal":
            rows.append((float("inf") if far is None else far, name, *cells))
    table = ["| method | left | of the mean over | |", "| --- " * 4 + "|"]
    table += [f"| {' | '.join(cells)} |" for _, *cells in sorted(rows)]
    return "\n".join([*table, ""])


def _distances(found: Mapping[str, list]) -> Iterator[tuple[str, float | None, list[str]]]:
    """(method, what is left or None, that and its meaning in words) for each method."""
    for name, lines in found.items():
        _, measured, meaning = line(lines, BIAS)
        far = LEFT.match(measured)
        if not far:
            yield name, None, ["", "", meaning]
            continue
        which = "examples" if far[2] == "the optimum" else "clients"
        yield name, float(far[1]), [f"{float(far[1]):.1e}", which, meaning]


if __name__ == "__main__":
    main()
