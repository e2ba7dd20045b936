"""Finished runs, kept in results/NAME.json, so that an interrupted claim goes on where it stopped.

found = kept.Kept(kept.path("merging"), settings)
found.once("never/seed/1", run)  # unless the file has it
found.publish(page, draw)  # results/merging.md and .png
"""

import json
import pathlib
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxfed.analysis import look

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "speed"))

import timing

RESULTS = pathlib.Path(__file__).parent / "results"


class Kept:
    """The runs of one file, all of which have the same settings; `more` is kept beside them."""

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], **more: Any):
        settings = json.loads(json.dumps(settings))
        self.path, self.lock = path, threading.Lock()
        new = {"command": timing.command(), "machine": timing.machine(), "settings": settings}
        self.content: dict[str, Any] = {**new, **more, "runs": {}}
        if path.exists():
            self.content = json.loads(path.read_text())
        if self.content["settings"] != settings:
            raise SystemExit(
                f"{path} has runs of {self.content['settings']}, not {settings}; give another "
                "--results"
            )

    @property
    def runs(self) -> dict[str, dict]:
        return self.content["runs"]

    def add(self, key: str, run: dict) -> None:
        """Keeps a finished run, in the file too."""
        with self.lock:
            self.runs[key] = run
            self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all; one line a run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in self.content.items() if key != "runs"}
        runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(r)}" for k, r in self.runs.items())
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(head, indent=1)[:-2] + f',\n "runs": {{\n{runs}\n }}\n}}\n')
        part.replace(self.path)

    def publish(
        self,
        page: Callable[[Mapping, str], str],
        draw: Callable[[Mapping], Figure] | None = None,
    ) -> None:
        """Writes page(content, the picture's name) and the picture beside the runs; prints it."""
        picture = self.path.with_suffix(".png")
        if draw is not None:
            with rc_context(look.LOOK):
                draw(self.content).savefig(picture, dpi=80)
        text = page(self.content, picture.name)
        self.path.with_suffix(".md").write_text(text)
        print(text)


def path(name: str) -> pathlib.Path:
    """benchmarks/claims/results/NAME.json; or NAME.json itself if the name has a folder."""
    return (RESULTS if pathlib.Path(name).name == name else pathlib.Path()) / f"{name}.json"


def head(content: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Markdown: a line for the command, for each of these settings, and for the machine."""
    return timing.listed({"command": content["command"], **settings, **content["machine"]})
