"""What the pages show is run, exists, and is as the code has it."""

import importlib.util
import itertools
import json
import re

import pages
import pytest

from jaxfed.cli import asked, launching, main

DOCS = pages.ROOT / "docs"
WORKLOADS = ("W1", "W2", "W3", "W4", "W5")


def each_page(marked=lambda page: True):
    chosen = [page for page in pages.PAGES if marked(page)]
    return pytest.mark.parametrize("page", chosen, ids=pages.name)


def text(page):
    return page.read_text(encoding="utf-8")


def writer():
    spec = importlib.util.spec_from_file_location("write", DOCS / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(page, heading):
    """{first cell: other cells} of the table of a page whose first row starts so."""
    lines = text(page).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    rows = [line.strip("|").split("|") for line in lines[start + 2 :]]
    end = next((i for i, row in enumerate(rows) if len(row) < 2), len(rows))
    return {row[0].strip(): [cell.strip(" *`") for cell in row[1:]] for row in rows[:end]}


# ---------------------------------------------------------------------- what is shown is run


RUN = [page for page in pages.PAGES if page.name != "README.md" and pages.blocks(page, "python")]
FIRST = "first_run.md"  # the others are run in the full tier


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=pages.name(page), marks=[pytest.mark.full] * (page.name != FIRST))
        for page in RUN
    ],
)
def test_the_python_of_a_page_runs(page):
    assert pages.printed(page)


@pytest.mark.full
def test_ffa_lora_as_shown_trains_biases_and_head_too():
    """With B alone it ends at 0.83."""
    assert pages.accuracies(DOCS / "write_an_algorithm.md")[-1] > 0.87


@pytest.mark.full
def test_declared_bytes_as_shown_are_those_of_what_crosses():
    """20 clients send a tenth of B, the biases and the head, each entry with its position."""
    entries = 2 * 16 * 128 + 2 * 128 + 128 * 10 + 10
    lines = pages.printed(DOCS / "write_an_algorithm.md").splitlines()
    up = next(line.split()[0] for line in lines if re.fullmatch(r"[0-9]+ [0-9.]+", line))
    assert int(up) == 20 * 8 * int(0.1 * entries)


def test_the_algorithm_as_shown_passes_its_check():
    assert pages.printed(DOCS / "write_an_algorithm.md").endswith("mine: the contract holds\n")


# ---------------------------------------------------------------------- what is named exists


@pytest.mark.quick
@each_page()
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", text(page))
    assert [x for x in links if "://" not in x and not (page.parent / x).exists()] == []


@pytest.mark.quick
@each_page()
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"(?<![\w./])(?:benchmarks|configs|docs|jaxfed|tests)/[\w/.]*\w", text(page))
    assert [path for path in named if not (pages.ROOT / path).exists()] == []


@pytest.mark.quick
@each_page()
def test_commands_that_a_page_names_exist(page):
    code = [
        *pages.blocks(page, "bash"),
        *re.findall(r"^    .*|`[^`\n]*`", text(page), re.MULTILINE),
    ]
    commands = re.findall(r"\bjaxfed ([a-z]+)", "\n".join(code))
    assert [c for c in commands if f"jaxfed {c} " not in main.USAGE] == []


@pytest.mark.quick
@each_page()
def test_options_that_a_page_gives_to_a_program_exist(page):
    given = re.findall(r"(?:python|jaxfed \w+)\s([\w/]+\.py)((?:\s[\w./:$-]+)*)", text(page))
    for path, rest in given:
        file = pages.ROOT / path
        beside = "".join(text(other) for other in file.parent.glob("*.py"))
        further = itertools.chain.from_iterable(asked.FURTHER.values())
        every = [*launching.NAMES, *launching.CHANGES, *further]
        known = {n.replace("_", "-") for n in [*every, *re.findall(r"(\w+): ", beside)]}
        known |= set(re.findall(r'"--([\w-]+)"', beside))
        assert set(re.findall(r"--([\w-]+)", rest)) <= known, path


# ---------------------------------------------------------------------- what is made is current


@pytest.mark.quick
def test_pages_show_the_house_and_the_api_as_they_are():
    """`python docs/write.py` writes what is missing."""
    current = writer().current
    assert [pages.name(p) for p in pages.PAGES if current(text(p)) != text(p)] == []


@pytest.mark.quick
@pytest.mark.parametrize("page", [pages.ROOT / "README.md", DOCS / "results" / "speed.md"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_speed_table_has_the_medians_that_were_measured(page, workload):
    rows = table(page, "| workload |")
    shown = next(cells for name, cells in rows.items() if name.startswith(workload))
    file = pages.ROOT / "benchmarks" / "speed" / "results" / f"{workload.lower()}.json"
    seconds = json.loads(text(file))["seconds"][workload]
    names = ("jaxfed", "torch loop2", "torch vmap2")
    measured = [f"{seconds[n]['median']:.2f}" if n in seconds else "" for n in names]
    assert shown[:3] == measured


@pytest.mark.quick
def test_ratios_to_the_loop_follow_from_the_seconds():
    seconds = table(DOCS / "results" / "peers.md", "| | W1 |")
    loop = [float(x) for x in seconds["PyTorch loop, tuned, two processes"]]
    for peer, ratios in table(DOCS / "results" / "peers.md", "| time / PyTorch loop |").items():
        for name, values in seconds.items():
            if name.startswith(peer):
                found = [f"{float(x) / y:.2f}" for x, y in zip(values, loop, strict=True)]
                assert found == ratios
