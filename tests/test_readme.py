"""What the README shows is run, and short."""

import re

import pages

PAGE = pages.ROOT / "README.md"
README = PAGE.read_text(encoding="utf-8")


def test_the_readmes_python_runs_and_learns():
    assert pages.accuracies(PAGE)[-1] > 0.7


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 120


def test_ci_runs_the_command_that_the_readme_gives():
    ci = (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'grep -m 1 -- "-m pytest" README.md' in ci
    assert len(re.findall("-m pytest", README)) == 1
