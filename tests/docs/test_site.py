"""The site of the pages, built as a reader builds it."""

import importlib
import re
import subprocess
import sys

import pages
import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytestmark = pytest.mark.full

LOADED = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run([sys.executable, *words], cwd=pages.ROOT, check=True, timeout=240)
    return folder


def test_every_page_and_public_name_is_in_the_site(site):
    made = {path.parent.name for path in site.rglob("index.html")}
    assert {p.stem for p in (pages.ROOT / "docs").glob("*.md")} <= made
    sys.path.insert(0, str(pages.ROOT / "docs"))
    try:
        write = importlib.import_module("write")
    finally:
        sys.path.pop(0)
    for name in write.PUBLIC:
        text = (site / "api" / name / "index.html").read_text(encoding="utf-8")
        for each in write.public(importlib.import_module(name)):
            assert re.search(rf"[\b.>\"#]{each}\b", text), f"{name}.{each}"


def test_the_site_fetches_nothing(site):
    found = {
        url
        for path in site.rglob("*.html")
        for url in LOADED.findall(path.read_text(encoding="utf-8"))
    }
    assert found == set()
    assert "@import url(http" not in "".join(p.read_text("utf-8") for p in site.rglob("*.css"))


def test_images_of_the_readme_are_copied(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    images = re.findall(r'<img[^>]*src="([^"]*)', text)
    assert len(images) >= 2
    assert all((site / image).is_file() for image in images)
