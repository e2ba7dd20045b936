"""The README and the pages of docs/: their blocks of code, run as a reader would run them."""

import contextlib
import io
import re
import tempfile
from functools import cache
from pathlib import Path

import tiny_bert
import tiny_vit

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The blocks of code of a page in one language, in their order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@cache
def printed(page):
    """What the page's Python prints, run in a folder that has the files which pages speak of.

    The blocks of a page are one program.
    """
    out, namespace = io.StringIO(), {"__name__": "__main__"}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
    ):
        tiny_bert.write(Path("bert"))
        tiny_vit.write(Path("vit"))
        tiny_bert.write_cola(Path("glue"), train=24, dev=12)
        for block in blocks(page, "python"):
            exec(compile(block, name(page), "exec"), namespace)
    return out.getvalue()


def accuracies(page):
    """The accuracies among lines `round loss accuracy` that the page prints."""
    lines = [line.split() for line in printed(page).splitlines()]
    return [float(words[2]) for words in lines if len(words) == 3 and words[2] != "None"]
