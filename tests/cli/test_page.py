"""The page of a report holds what the runs hold, whole, and nothing that a stranger could run."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from launched import recorded_folder as folder

from jaxfed.cli import main, page, plots, recorded, studies, tables
from jaxfed.simulation import by_client

WICKED = "</script><img src=x onerror=alert(1)>"


class Parsed(html.parser.HTMLParser):
    """The tags of a page with their attributes, its charts, and the text of each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []
        self.feed(text)
        self.close()
        self.charts = [json.loads(a["data-chart"]) for _, a in self.tags if "data-chart" in a]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "rect", "line", "path", "circle", "img"):
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # what is opened is closed

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


@pytest.fixture
def study(tmp_path):
    """Two methods with three seeds each, and what their clients had at the end."""
    found = []
    for method, rate in ((WICKED, 0.05), ("fedloru", 0.1)):
        for seed in range(3):
            name = f"{'ab'[method == 'fedloru']}{seed}"
            place = folder(
                tmp_path / name, rate=rate + seed / 100, method=method, seed=seed, rank=4
            )
            each = {"client": np.arange(4), "examples": np.full(4, 2), "accuracy": np.arange(4) / 4}
            by_client.append(place, 20, each, None)
            found.append(place)
    return found


def made(study, by=("seed",)):
    groups = studies.grouped([recorded.read(place) for place in study], by)
    return groups, Parsed(page.page(groups))


def test_the_charts_hold_the_curves_of_the_groups(study):
    groups, found = made(study)
    accuracy, sent, loss, over, each = found.charts
    ends = [1 - (1 - 0.1 - s / 100) ** 20 for s in range(3)]
    curve = accuracy["curves"][1]
    expected = studies.statistic(ends)
    assert curve["x"] == [5, 10, 15, 20]
    got = (curve["y"][-1], curve["low"][-1], curve["high"][-1])
    np.testing.assert_allclose(got, (expected.mean, expected.low, expected.high), rtol=1e-5)
    assert sent["curves"][1]["x"] == [15, 30, 45, 60]
    assert len(loss["curves"][0]["x"]) == 20
    assert over["curves"][0]["low"][0] < over["curves"][0]["y"][0]
    assert each["curves"][0]["y"] == sorted(list(np.arange(4) / 4) * 3)
    names = {c["name"] for chart in found.charts for c in chart["curves"]}
    assert names == {group.name for group in groups}
    lines = [a for tag, a in found.tags if a.get("class") == "curve"]
    assert len(lines) == 5 * 2
    numbers = re.findall(r"[-\d.]+", "".join(a["d"] for a in lines))
    assert all(0 <= float(n) <= page.WIDTH for n in numbers)


def test_the_tables_say_what_the_report_says(study):
    groups, found = made(study)
    for row in tables.cells(tables.table(groups)):
        assert set(row.values()) <= set(found.cells)
    assert {"run", "method", "seed"} <= set(found.cells)  # what differs
    assert {"rank", "4"} <= set(found.cells)  # what does not
    assert sum("sortable" in a.get("class", "") for _, a in found.tags) == 3
    assert any("less that of" in cell for cell in found.cells)


def test_the_page_needs_no_network_and_runs_nothing_of_a_stranger(study):
    _, found = made(study)
    assert not [tag for tag, _ in found.tags if tag in ("img", "link", "iframe", "object")]
    assert not [a for _, a in found.tags if {"src", "href"} & set(a) or "onerror" in a]
    assert [tag for tag, _ in found.tags].count("script") == 1
    policy = next(a["content"] for _, a in found.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert f"method={WICKED}" in {c["name"] for c in found.charts[0]["curves"]}


@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_a_run_that_has_just_begun_has_a_page(tmp_path, rounds):
    place = folder(tmp_path / "a", rounds=rounds, every=0 if rounds == 6 else 1)
    groups, found = made([place], ())
    groups[0].runs[0].settings["rounds"] = 40
    assert "1 not at the last round" in page.page(groups)
    assert len(found.charts) == {0: 0, 1: 4, 6: 1}[rounds]


def test_ticks_are_round_numbers_inside():
    assert page.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert page.ticks(0.31, 0.34) == [0.31, 0.315, 0.32, 0.325, 0.33, 0.335, 0.34]
    assert page.decades(3, 300) == [5, 10, 20, 50, 100, 200]
    assert page.decades(1, 10**6) == [10.0**p for p in range(7)]


def test_the_command_writes_it(study, tmp_path, capsys):
    given = ["report", *study, "--html", tmp_path / "page.html", "--to", tmp_path / "plots"]
    main.main([str(word) for word in given])
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to read JavaScript")
def test_the_script_is_javascript():
    script = page.TEMPLATE.read_text().split("<script>")[1].split("</script>")[0]
    check = subprocess.run(["node", "--check", "-"], input=script, text=True, check=False)
    assert check.returncode == 0


@pytest.mark.parametrize(("megabyte", "log"), [(1.0, False), (100.0, True)])
def test_the_page_and_the_plots_take_the_same_axis(tmp_path, megabyte, log):
    places = [folder(tmp_path / "a"), folder(tmp_path / "b", megabyte=megabyte)]
    groups, found = made(places, ())
    curves = plots.curves("accuracy", groups)["by_megabytes"]
    assert found.charts[1]["log"] == plots.is_wide(curves) == log
    axes = plots.PLOTS["by_megabytes"]("accuracy", True, curves).axes[0]
    assert axes.get_xscale() == ("log" if log else "linear")


def test_the_page_and_the_text_have_the_same_pairs(study):
    groups, found = made(study)
    head, rows = tables.pairs(groups)
    for words in (head, *(words for _, words in rows)):
        assert set(words) <= set(found.cells)
        assert all(word in tables.paired(groups) for word in words)


def test_labels_by_client_are_drawn_once_for_runs_of_one_split(tmp_path):
    """An area is an opacity: a client's opacities add up to one, and bars to the largest client."""
    tables = {"a": np.array([[3, 1], [0, 8]]), "b": np.array([[3, 1], [0, 8]]), "c": np.eye(2, 2)}
    runs = [folder(tmp_path / n, labels=t.astype(int), seed=n) for n, t in tables.items()]
    found = Parsed(page.page(studies.grouped([recorded.read(run) for run in runs])))
    rects = [float(a["fill-opacity"]) for tag, a in found.tags if tag == "rect" and len(a) == 5]
    assert rects == [1, 1, 0.75, 0.25, 1, 1, 1, 1, 1]
    alone = page.page(studies.grouped([recorded.read(folder(tmp_path / "none"))]))
    assert "Labels by client" not in alone
