"""Reports: what a run left in its folder, in a table and in pictures."""

import json
import sys

import numpy as np
import pytest
from launched import recorded_folder as folder
from matplotlib import image

import jaxfed
from jaxfed.cli import main, page, plots, recorded, studies, tables
from jaxfed.simulation import by_client


def test_a_run_is_read_as_it_was_written(tmp_path):
    labels = np.arange(12).reshape(4, 3)
    run = recorded.read(folder(tmp_path / "a", labels=labels, method="fedavg"))
    assert (run.name, run.config, run.settings["method"]) == ("a", "digits", "fedavg")
    assert [r["round"] for r in run.records] == list(range(1, 21))
    np.testing.assert_array_equal(run.labels, labels)


@pytest.mark.parametrize("cut", [1, 2, 50, 90])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path, cut):
    place = folder(tmp_path / "a")
    metrics = place / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-cut])
    assert len(recorded.read(place).records) == (20 if cut == 1 else 19)


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
    place = folder(tmp_path / "a")
    metrics = place / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:6], lines[6][:9], *lines[7:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 7 is damaged"):
        recorded.read(place)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run's folder"):
        recorded.read(tmp_path)


def test_megabytes_add_up_over_rounds_and_merges(tmp_path):
    run = recorded.read(folder(tmp_path / "a", rounds=3))
    run.records[1]["broadcast"] = 10e6
    np.testing.assert_allclose(recorded.megabytes(run), [3, 16, 19])
    np.testing.assert_allclose(recorded.megabytes(run, "up"), [1, 2, 3])


def test_reached_is_the_first_evaluation_at_or_above(tmp_path):
    run = recorded.read(folder(tmp_path / "a"))
    assert recorded.reached(run, 1 - 0.9**10) == (10, 30.0)
    assert recorded.reached(run, 1 - 0.9**10 + 1e-9) == (15, 45.0)
    assert recorded.reached(run, 0.99) is None


def table(runs, goal=None):
    return tables.text(tables.table(studies.grouped(runs), goal))


def draw(runs, place):
    return plots.draw(studies.grouped(runs), place)


def columns(text):
    head, *rows = ([c.strip() for c in line.split("  ") if c.strip()] for line in text.split("\n"))
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_table_holds_what_the_run_holds(tmp_path):
    run = recorded.read(folder(tmp_path / "a", method="fedavg"))
    run.settings["rounds"] = 40
    assert columns(table([run], 0.6)) == [
        {
            "run": "a",
            "method": "fedavg",
            "rounds": "20/40",
            "best": "87.84%",
            "last": "87.84%",
            "own": "87.84%",
            "round of 60.00%": "10",
            "MB to 60.00%": "30",
            "MB up": "20",
            "MB down": "40",
            "s/round": "0.5",
        }
    ]


def test_other_measures_have_a_column_where_a_run_has_them(tmp_path):
    with_it, without = (recorded.read(folder(tmp_path / name)) for name in "ab")
    with_it.records[-6]["matthews"], with_it.records[-1]["matthews"] = 0.2, 0.5
    first, second = table([with_it, without]).split("\n")[1:]
    assert "50.00%" in first
    assert "f1" not in (head := table([with_it, without]).split("\n")[0])
    assert head.split().index("matthews") == head.split().index("own") + 1
    assert second.split()[head.split().index("matthews")] == "-"


def test_runs_are_compared_at_one_accuracy_of_the_best_among_them(tmp_path):
    slow, fast = (recorded.read(folder(tmp_path / f"r{rate}", rate=rate)) for rate in (0.02, 0.1))
    first, second = columns(table([slow, fast]))
    goal = f"{95 * (1 - 0.9**20):.2f}%"
    assert first[f"round of {goal}"] == "-"
    assert second[f"round of {goal}"] == "20"
    assert "method" not in first


def test_a_run_that_has_just_begun_has_a_line(tmp_path):
    place = folder(tmp_path / "a", rounds=0)
    (line,) = columns(table([recorded.read(place)]))
    assert (line["rounds"], line["best"], line["MB up"]) == ("0", "-", "-")
    assert draw([recorded.read(place)], tmp_path / "plots") == []


def test_runs_are_told_apart_by_the_settings_in_which_they_differ(tmp_path):
    same = {"method": "fedlora", "seed": 0}
    runs = [
        recorded.read(folder(tmp_path / "a", **same, rank=4)),
        recorded.read(folder(tmp_path / "b", **same, rank=8)),
        recorded.read(folder(tmp_path / "c", **same, rank=8)),
        recorded.read(folder(tmp_path / "d", **same)),
    ]
    assert studies.legend(runs) == ["rank=4", "rank=8 (b)", "rank=8 (c)", "d"]


LINES = ["accuracy_by_round", "accuracy_by_megabytes", "loss_by_round", "accuracy_over_clients"]


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (100, 10), (1000, 10), (3000, 100)])
def test_every_plot_is_drawn_and_shows_something(tmp_path, clients, classes):
    labels = np.random.default_rng(0).integers(0, 9, (clients, classes))
    run = recorded.read(folder(tmp_path / "a", labels=labels))
    plots = draw([run], tmp_path / "a" / "plots")
    assert [p.stem for p in plots] == [*LINES, "labels_by_client"]
    for plot in plots:
        assert plot.suffix == ".png"
        assert image.imread(plot)[..., :3].std() > 0.05  # an empty page has none


def test_only_what_was_recorded_is_drawn(tmp_path):
    run = recorded.read(folder(tmp_path / "a", personal=False))
    assert [p.stem for p in draw([run], tmp_path)] == LINES[:3]
    run = recorded.read(folder(tmp_path / "b", every=0))
    assert [p.stem for p in draw([run], tmp_path)] == ["loss_by_round"]


def test_many_runs_share_a_plot_and_keep_their_own_labels(tmp_path):
    labels = np.eye(5, dtype=int)
    runs = [
        recorded.read(
            folder(tmp_path / f"r{s}", rounds=150, seed=s, megabyte=10.0**s, labels=s * labels)
        )
        for s in (1, 2, 3)
    ]
    plots = draw(runs, tmp_path / "plots")
    assert [p.stem for p in plots] == [*LINES, *(f"labels_by_client_r{s}" for s in (1, 2, 3))]


def test_labels_that_runs_have_alike_are_drawn_once(tmp_path):
    labels = np.eye(5, dtype=int)
    runs = [recorded.read(folder(tmp_path / f"r{s}", seed=s, labels=labels)) for s in range(3)]
    assert [p.stem for p in draw(runs, tmp_path / "plots")] == [*LINES, "labels_by_client"]


@pytest.mark.parametrize("plot", ["accuracy_by_round", "accuracy_over_clients"])
def test_a_diverged_run_is_drawn_too(tmp_path, plot):
    run = recorded.read(folder(tmp_path / "a"))
    run.records[-1] |= {"loss": float("nan"), "accuracy": float("nan"), "personal": {}}
    assert plot in [p.stem for p in draw([run], tmp_path)]
    assert columns(table([run]))[0]["best"] == f"{100 * (1 - 0.9**15):.2f}%"


def test_smoothing_keeps_a_constant_and_a_straight_middle():
    np.testing.assert_allclose(plots._smooth(np.full(9, 3.0), 4), 3)
    np.testing.assert_allclose(plots._smooth(np.arange(9.0), 3)[1:-1], np.arange(1, 8))


# ---------------------------------------------------------------------- groups of runs


ENDS = {"fedlora": (0.02, 0.03, 0.04), "fedloru": (0.06, 0.08, 0.10)}  # rates of three seeds


@pytest.fixture
def study(tmp_path):
    """Folders of two methods with three seeds each."""
    return [
        folder(tmp_path / f"{method}{seed}", rate=rate, method=method, seed=seed, rank=4)
        for method, rates in ENDS.items()
        for seed, rate in enumerate(rates)
    ]


@pytest.fixture
def swept(study, tmp_path):
    """Their folder as a sweep has it, beside trials that chose a rate; one has not begun."""
    trials = {name: {} for name in [*(place.name for place in study), "later"]}
    (tmp_path / "sweep.json").write_text(json.dumps({"text": "", "trials": trials}))
    (tmp_path / "ended.json").write_text("{}")
    tuned = folder(tmp_path / "tune" / "rate", seed=0)
    (tmp_path / "tune" / "sweep.json").write_text('{"text": "", "trials": {"rate": {}}}')
    (tmp_path / "later").mkdir()
    return tmp_path, tuned


def test_a_sweeps_folder_stands_for_its_trials_and_so_does_what_is_inside(swept, study, tmp_path):
    place, tuned = swept
    assert recorded.folders([place]) == study
    assert recorded.folders([*study, *place.glob("*.json"), place / "tune"]) == study
    assert recorded.folders([place / "tune"]) == [tuned]
    assert recorded.folders([tuned]) == [tuned]
    assert recorded.folders([study[1], study[1]]) == [study[1], study[1]]
    assert recorded.folders([tmp_path / "none"]) == [tmp_path / "none"]


def test_a_report_of_all_that_is_in_a_sweeps_folder_is_that_of_its_trials(swept, tmp_path, capsys):
    given = map(str, sorted(swept[0].glob("*")))
    main.main(["report", *given, "--group", "seed", "--to", str(tmp_path / "plots")])
    printed = capsys.readouterr().out
    assert all(f"{method}  " in printed for method in ENDS)
    assert "tune" not in printed


def test_names_in_a_sweeps_list_lead_nowhere_else(study, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "sweep.json").write_text(
        json.dumps({"trials": {"../fedlora0": {}, str(study[0]): {}}})
    )
    assert recorded.folders([tmp_path / "inner"]) == [tmp_path / "inner"]


def end(rate, rounds=20):
    return 1 - (1 - rate) ** rounds


def test_the_interval_is_students():
    """Of two numbers, t with one degree of freedom is the tangent of 0.475 pi."""
    found = studies.statistic([1.0, 3.0])
    half = np.tan(0.475 * np.pi) * np.sqrt(2) / np.sqrt(2)
    expected = (2, np.sqrt(2), 2 - half, 2 + half, 2)
    np.testing.assert_allclose(found, expected)
    alone = studies.statistic([5.0])
    assert (alone.mean, alone.size) == (5, 1)
    assert np.isnan(alone.low)
    assert studies.statistic([0.1] * 3)[:4] == (
        0.1,
        0,
        0.1,
        0.1,
    )  # whose sum is 0.30000000000000004


def test_runs_that_differ_in_their_seed_are_one_group(study):
    groups = studies.grouped([recorded.read(p) for p in study], ["seed"])
    assert [g.name for g in groups] == ["method=fedlora", "method=fedloru"]
    assert [g.keys for g in groups] == [((0,), (1,), (2,))] * 2
    rows = tables.table(groups, 0.55).rows
    for row, rates in zip(rows, ENDS.values(), strict=True):
        ends = [end(rate) for rate in rates]
        np.testing.assert_allclose(row["last"][:2], (np.mean(ends), np.std(ends, ddof=1)))
    assert rows[0]["round of 55.00%"].mean == 20
    assert rows[0]["round of 55.00%"].size == 1
    np.testing.assert_allclose(rows[1]["round of 55.00%"][0], (15 + 10 + 10) / 3)
    np.testing.assert_allclose(rows[1]["MB to 55.00%"][0], 3 * (15 + 10 + 10) / 3)


def test_differences_are_paired_by_seed(study):
    groups = studies.grouped([recorded.read(p) for p in study], ["seed"])
    top, found = studies.differences(groups, "accuracy")
    gaps = [end(a) - end(b) for a, b in zip(*ENDS.values(), strict=True)]
    assert top == "method=fedloru"
    np.testing.assert_allclose(found["method=fedlora"], studies.statistic(gaps))
    assert "3" in tables.paired(groups).split("\n")[1].split()


def test_curves_of_a_group_are_means_with_their_interval(study):
    group = studies.grouped([recorded.read(p) for p in study], ["seed"])[1]
    group.runs[0].records.pop()  # which has not come as far
    curve = plots._by_round("accuracy", group)
    np.testing.assert_array_equal(curve.x, [5, 10, 15])
    ends = studies.statistic([end(rate, 15) for rate in ENDS["fedloru"]])
    np.testing.assert_allclose((curve.y[-1], *(b[-1] for b in curve.band)), ends[:1] + ends[2:4])


def test_a_task_without_accuracy_is_reported_by_its_own_measure(tmp_path):
    runs = [recorded.read(folder(tmp_path / f"r{s}", seed=s)) for s in range(2)]
    for run in runs:
        for record in run.records:
            if "accuracy" in record:
                record["test_perplexity"] = 30 - record["round"] + len(run.name)
                del record["accuracy"], record["personal"]
    assert studies.main_measure(runs) == "test_perplexity"
    (row,) = tables.table(studies.grouped(runs, ["seed"])).rows
    assert row["best"].mean == row["last"].mean == 12
    assert row["round of 12.6"].mean == 20
    assert next(p.stem for p in draw(runs, tmp_path)) == "test_perplexity_by_round"


def test_a_mean_of_some_of_the_runs_says_of_how_many_in_latex_too(study):
    groups = studies.grouped([recorded.read(p) for p in study], ["seed"])
    found = tables.table(groups, goal=0.5)  # which one of three seeds of FedLoRA reaches
    (row,) = [line for line in tables.as_latex(found).splitlines() if "fedlora" in line]
    assert row.count("(1 of 3)") == 2  # rounds and megabytes
    assert "(3 of 3)" not in tables.as_latex(found)


def test_files_for_a_paper_and_a_spreadsheet(study, tmp_path, capsys):
    where = {n: tmp_path / f"out.{suffix}" for n, suffix in (("csv", "csv"), ("latex", "tex"))}
    files = [word for n, path in where.items() for word in (f"--{n}", path)]
    given = ["report", *study, "--group", "seed", *files, "--to", tmp_path / "plots"]
    main.main([str(word) for word in given])
    printed = capsys.readouterr().out
    assert "accuracy less that of method=fedloru" in printed
    head, *rows = (line.split(",") for line in where["csv"].read_text().splitlines())
    cells = dict(zip(head, rows[1], strict=True))
    ends = [end(rate) for rate in ENDS["fedloru"]]
    np.testing.assert_allclose(float(cells["last mean"]), np.mean(ends))
    assert (cells["group"], cells["runs"]) == ("method=fedloru", "3")
    lines = where["latex"].read_text().splitlines()
    assert lines[0].startswith(r"\begin{tabular}{l")
    assert all(line.count("&") == lines[2].count("&") for line in lines[4:6])
    assert rf"{100 * np.mean(ends):.2f}\%" in lines[5]
    assert (tmp_path / "plots" / "accuracy_by_round.png").exists()


def test_a_group_by_nothing_is_refused(study):
    with pytest.raises(
        ValueError, match=r"no run has a setting 'sed' to group by; they have .*seed"
    ):
        studies.grouped([recorded.read(study[0])], ["sed"])


def test_results_are_a_frame_of_all_records(study):
    pytest.importorskip("pandas")
    frame = jaxfed.results(*study)
    assert len(frame) == 6 * 20
    found = frame[frame["round"] == 20].groupby("method")["accuracy"].mean()
    for method, rates in ENDS.items():
        np.testing.assert_allclose(found[method], np.mean([end(rate) for rate in rates]))
    one = frame[(frame["run"] == "fedlora0") & (frame["round"] == 3)].iloc[0]
    assert (one["megabytes"], one["rank"], one["clients"]) == (9.0, 4, 4)
    assert frame["personal/accuracy/p10"].notna().sum() == 6 * 4


def test_a_frame_by_client_has_a_row_for_each_at_each_evaluation(tmp_path):
    pytest.importorskip("pandas")
    place = folder(tmp_path / "a", seed=3)
    each = {"client": np.arange(3), "examples": np.full(3, 4), "accuracy": np.array([0.5, 1, 0])}
    for t in (5, 10):
        by_client.append(place, t, each, ("anna", "ben", "cleo"))
    frame = jaxfed.results(place, clients=True)
    assert frame.loc[3].to_dict() | {} == {
        "run": "a", "rounds": 20, "seed": 3, "round": 10, "client": "anna", "examples": 4,
        "accuracy": 0.5,
    }  # fmt: skip
    run = recorded.read(place)
    assert (run.clients["client"], len(frame)) == (["anna", "ben", "cleo"], 6)
    (group,) = studies.grouped([run])
    np.testing.assert_array_equal(plots._by_client("accuracy", group).y, [0, 0.5, 1])
    assert "accuracy_by_client" in [p.stem for p in draw([run], tmp_path)]


def test_without_pandas_there_is_a_sentence(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxfed\[results\]'"):
        jaxfed.results(*study)


@pytest.mark.parametrize(
    "files",
    [
        ("--csv", "mine.py"),
        ("--latex", "mine.csv"),
        ("--html", "page"),
        ("--csv", "a.csv", "--html", "a.csv"),
        ("--latex", "a.tex", "--html", "a.tex/b.html"),
        ("--csv", "folder.csv"),
    ],
)
def test_a_file_of_another_kind_is_never_replaced(study, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    for name in ("mine.py", "mine.csv", "page"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit):
        main.main(["report", str(study[0]), *files])
    printed = capsys.readouterr()
    assert not printed.out
    assert files[-2] in printed.err
    assert {(tmp_path / n).read_text() for n in ("mine.py", "mine.csv", "page")} == {"mine"}
    assert not (study[0] / "plots").exists()


def test_measures_with_the_names_of_other_columns_have_columns_of_their_own(tmp_path):
    names = ("best", "last", "rounds", "test best", "MB up", "exact match")
    runs = [recorded.read(folder(tmp_path / f"r{s}", rate=0.1 + s / 10, seed=s)) for s in range(2)]
    for i, run in enumerate(runs):
        run.records[-1] |= {name: 0.1 * (j + 1) + i / 100 for j, name in enumerate(names)}
    found = tables.table(studies.grouped(runs, ["seed"]))
    (row,) = found.rows
    columns = ("test test best", "test last", "test rounds", "test best", "test MB up", names[-1])
    for j, column in enumerate(columns):
        np.testing.assert_allclose(row[column].mean, 0.1 * (j + 1) + 0.005)
    (cells,) = tables.cells(found)
    assert "[" in cells["exact match"]  # a measure has its interval
    assert "[" not in cells["s/round"]
    assert row["best"].mean > 0.8
    for write in (tables.text, tables.as_csv, tables.as_latex):
        assert "exact match" in write(found)


@pytest.mark.parametrize("first", "=+-@")
def test_text_is_no_formula_of_a_spreadsheet(tmp_path, first):
    wicked = f"{first}SUM(A1)"
    found = tables.table(studies.grouped([recorded.read(folder(tmp_path / "a", method=wicked))]))
    assert f"'{wicked}" in tables.as_csv(found).split("\n")[1].split(",")


def test_a_number_that_a_group_lacks_is_empty_in_its_own_column(study):
    groups = studies.grouped([recorded.read(p) for p in study], ["seed"])
    for run in groups[1].runs:
        run.records[-1] |= {"f1": 0.5, "last mean": 0.25}
    head, first, _ = (
        line.split(",") for line in tables.as_csv(tables.table(groups)).split("\n")[:3]
    )
    cells = dict(zip(head, first, strict=True))
    np.testing.assert_allclose(
        float(cells["last mean"]), np.mean([end(r) for r in ENDS["fedlora"]])
    )
    assert cells["f1 mean"] == cells["last mean mean"] == ""


def test_runs_of_one_name_are_numbered_and_none_is_lost(tmp_path):
    labels = np.eye(3, dtype=int)
    places = [
        folder(tmp_path / p / "run", rate=0.1 + i / 10, labels=(i + 1) * labels, seed=0)
        for i, p in enumerate("pqr")
    ]
    groups = studies.grouped([recorded.read(place) for place in places])
    assert [g.name for g in groups] == ["run", "run (2)", "run (3)"]
    assert [row["run"] for row in tables.table(groups).rows] == ["run", "run (2)", "run (3)"]
    drawn = [p.stem for p in plots.draw(groups, tmp_path)]
    assert drawn[-3:] == [f"labels_by_client_run{n}" for n in ("", " (2)", " (3)")]
    assert len(set(drawn)) == len(drawn)
    top, found = studies.differences(groups, "accuracy")
    assert (top, list(found)) == ("run (3)", ["run", "run (2)"])
    assert recorded.numbered(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]
    damaged = groups[1].runs[0]
    damaged.records[4]["accuracy"] = "x"
    with pytest.raises(ValueError, match=r"q/run/metrics.jsonl, line 5 is damaged"):
        recorded.series(damaged, "accuracy")


def test_runs_with_equal_keys_are_paired_each_once(tmp_path):
    rates = {"fedlora": (0.02, 0.03), "fedloru": (0.06, 0.08)}
    runs = [
        recorded.read(folder(tmp_path / f"{method}{i}", rate=rate, method=method, seed=0))
        for method, of in rates.items()
        for i, rate in enumerate(of)
    ]
    (found,) = studies.differences(studies.grouped(runs, ["seed"]), "accuracy")[1].values()
    gaps = [end(a) - end(b) for a, b in zip(*rates.values(), strict=True)]
    np.testing.assert_allclose(found, studies.statistic(gaps))


def test_a_frame_tells_runs_of_one_name_apart(tmp_path):
    pytest.importorskip("pandas")
    frame = jaxfed.results(*(folder(tmp_path / p / "run", rounds=2) for p in "pq"))
    assert frame["run"].to_list() == ["run", "run", "run (2)", "run (2)"]


def test_a_measure_called_labels_has_a_picture_beside_that_of_labels(tmp_path):
    run = recorded.read(folder(tmp_path / "a", labels=np.eye(3, dtype=int), personal=False))
    for record in run.records:
        if "accuracy" in record:
            record["labels"] = record.pop("accuracy")
    run.clients["labels"] = [0.5, 1.0]
    names = [p.stem for p in draw([run], tmp_path / "plots")]
    assert names[-2:] == ["labels_by_client", "labels_by_client (2)"]


def test_runs_are_compared_by_the_measure_that_is_asked_for(study, tmp_path, capsys):
    """Of clients' own models, whose 10th percentile is .1 below the accuracy."""
    own = "personal/accuracy/p10"
    main.main(["report", *map(str, study), "--group", "seed", "--measure", own,
               "--csv", str(tmp_path / "t.csv"), "--to", str(tmp_path / "plots")])  # fmt: skip
    printed = capsys.readouterr().out
    assert f"{own} less that of method=fedloru" in printed
    groups = studies.grouped([recorded.read(p) for p in study], ["seed"])
    rows = tables.table(groups, measure=own).rows
    for row, rates in zip(rows, ENDS.values(), strict=True):
        np.testing.assert_allclose(row["last"].mean, np.mean([end(rate) for rate in rates]) - 0.1)
        assert "own" not in row
    assert {p.stem for p in (tmp_path / "plots").glob("personal*")} == {
        f"personal_accuracy_p10_{kind}" for kind in ("by_round", "by_megabytes", "over_clients")
    }
    words = page.page(groups, measure=own)
    assert "Accuracy of clients&#x27; own models (p10)" in words
    with pytest.raises(ValueError, match=r"--measure f1: no run has it; they have accuracy, "):
        tables.table(groups, measure="f1")
