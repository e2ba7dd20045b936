"""How mkdocs reads pages that are written for a repository, and makes the pages of the API.

The README is the first page. A link to a file that is no page becomes the file's path; an image
from elsewhere in the repository is copied. The API has a page for each module of docs/write.py.
"""

import importlib
import importlib.util
import posixpath
import re
import types
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
IMAGES = (".png", ".svg")


def _writer() -> Any:
    spec = importlib.util.spec_from_file_location("write", ROOT / "docs" / "write.py")
    if spec is None or spec.loader is None:
        raise ImportError("docs/write.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write = _writer()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API to the navigation."""
    pages = [{name: f"api/{name}.md"} for name in write.PUBLIC]
    config.nav = [*(config.nav or []), {"API": ["api/README.md", *pages]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from the top of the repository, those of the API, and images."""
    for source, page in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for name in write.PUBLIC:
        files.append(File.generated(config, f"api/{name}.md", content=reference(name)))
    for folder in ("benchmarks", "configs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in IMAGES:
                uri = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site has them."""
    uri = page.file.src_uri
    top = {made: source for source, made in TOP.items()}
    here = posixpath.dirname(f"docs/{uri}") if uri not in top else ""

    def site(found: re.Match) -> str:
        image, text, target = found.groups()
        path, mark, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        path = posixpath.normpath(posixpath.join(here, path))
        path = TOP.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(path) is None:
            return f"{text} (`{path}`)"
        away = posixpath.relpath(path, posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({away}{mark}{anchor})"

    return LINK.sub(site, markdown)


# ---------------------------------------------------------------------- the API


def reference(name: str) -> str:
    """The page of a module: its docstring's first line, and each public name from its docstring."""
    module = importlib.import_module(name)
    parts = [f"# {name}", write.first_line(module)]
    for each, thing in write.public(module).items():
        if isinstance(thing, types.ModuleType):
            known = thing.__name__ in write.PUBLIC
            shown = f"[`{each}`]({thing.__name__}.md)" if known else f"`{each}`"
            parts.append(f"* {shown}: {write.first_line(thing)}")
        elif (owner := _owner(name, each)) != name:
            parts.append(f"* [`{each}`][{owner}.{each}]: {write.first_line(thing)}")
        else:
            parts.append(f"::: {_defined(thing, f'{name}.{each}')}")
    return "\n\n".join(parts) + "\n"


def _owner(name: str, each: str) -> str:
    """The module whose page has the reference of a name that several modules list."""
    thing = getattr(importlib.import_module(name), each)
    home = getattr(thing, "__module__", name)
    return home if home in write.PUBLIC and hasattr(importlib.import_module(home), each) else name


def _defined(thing: Any, otherwise: str) -> str:
    """Where a thing is defined, as the reader of the sources names it."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}.{name}" if module and name else otherwise
