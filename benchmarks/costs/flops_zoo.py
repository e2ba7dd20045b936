"""What a round of every row of the zoo costs in FLOPs, on an MLP 784-200-10.

    python benchmarks/costs/flops_zoo.py              all rows; minutes
    python benchmarks/costs/flops_zoo.py fedavg krum  these; others stay as the results have them

Counted as flops_table.py counts: shapes alone are traced. Rows make small runs, as for `jaxfed
check` and configs/zoo/digits.py: 8 clients, 10 local steps on batches of 16, AdamW where a method
leaves the optimizer open, factors of rank 8 beside the hidden layer, personal ones of rank 2.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import flops_table
import optax
from measuring import RESULTS, timing

from jaxfed import local
from jaxfed.algorithms import centralised, zoo
from jaxfed.algorithms.row import Row, Setting

FOUND = RESULTS / "flops_zoo.json"
AGAINST = "fedlora"
ROUNDS = range(1, 11)  # of which the mean is taken
SETTING = Setting(
    local.Work(flops_table.BATCH, steps=flops_table.STEPS),
    rate=1e-3,
    clients=flops_table.CLIENTS,
    cohort=flops_table.CLIENTS,
    rank=8,
    rounds=12,
    update=optax.adamw,
    personal_rank=2,
)


def count(row: Row) -> dict[str, float]:
    """{"round": FLOPs, "server": of these the server's, ...} of a row with what it trains."""
    model = flops_table.mlp("running" if row.trains == "norms" else "none")
    selected = row.select(factors="dense.*kernel", full="bias|^head", rank=8, alpha=8.0)
    times = flops_table.STEPS if row.function is centralised else 1
    made = flops_table.Row(row.make(model.task(selected), SETTING), list(ROUNDS), times)
    return flops_table.count(made, model.examples)


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row for each method."""
    lines = ["| method | trains | GFLOP a round | over fedlora | server's part |"]
    lines.append("| --- " * 5 + "|")
    for name, cost in found.items():
        ratio, share = cost["round"] / found[AGAINST]["round"], cost["server"] / cost["round"]
        least = "≥ " if cost["unbounded"] else ""
        cells = [name, zoo.named(name).trains, f"{least}{cost['round'] / 1e9:.3g}", f"{ratio:.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{share:.1%}'])} |")
    return "\n".join(lines)


def page(kept: Mapping[str, Any]) -> str:
    """The whole result in Markdown."""
    about = {"command": kept["command"], **kept["machine"]}
    sentence = (
        "Every row of the table that `jaxfed zoo` prints, as it makes small runs. FLOPs as "
        "`jaxfed describe` counts them, of a round of 8 clients with 10 local steps on batches of "
        "16; the mean of rounds 1 to 10 of 12. Where a method merges, it does so every 2 rounds; a "
        "method with stages is in one or two of them. `any`, `scratch` and `norms` train all "
        "layers, `factors` stand beside a frozen weight. The centralised rows make 10 steps, too. "
        "Rows with ≥ have a loop whose length the numbers decide; one turn of it is counted. "
        "[The table beside the paper's](flops.md) has other settings."
    )
    return "\n\n".join([timing.listed(about), sentence, table(kept["rows"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="*", help="names of rows of the zoo; all by default")
    asked = parser.parse_args().row
    rows = {row.name: row for row in zoo.ROWS}
    kept = {"command": timing.command(), "machine": timing.machine(), "rows": {}}
    if asked:
        kept = json.loads(FOUND.read_text(encoding="utf-8"))
    for name in asked or rows:
        kept["rows"][name] = count(rows[name])
        print(name, kept["rows"][name], flush=True)
    kept["rows"] = {n: kept["rows"][n] for n in rows if n in kept["rows"]}
    FOUND.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    FOUND.with_suffix(".md").write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
