import json
import shutil
from pathlib import Path

import pytest
from report.synthetic import make_record, write_run

from zigma_pl.cli.commands import tables as command
from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.record import ScoreValue, write_result
from zigma_pl.suite.report.experiments import by_table, load_experiments
from zigma_pl.suite.report.results import RecordCollection, RecordFile, load_results
from zigma_pl.suite.report.scores import figure, in_order, mean_and_spread, score_label
from zigma_pl.suite.report.tables import one_cell, views


def result(row, seed=0, loss=1.0, scale="smoke", **changes):
    record = make_record(row, seed, loss, Path("p"), False, Path("l")).model_copy(update={"scale": scale, **changes})
    return RecordFile(Path(f"{row}_{scale}_{seed}.json"), record)


@pytest.fixture
def table1(repository):
    return by_table(load_experiments(repository / "experiments"))["table 1"]


def cells(view, label):
    """Cells of a row by the heading of their column."""
    (line,) = [line for line in view.lines if line.experiment.label == label]
    return dict(zip([column.heading for column in view.columns], line.cells, strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [(158.1234, "158.1"), (0.0110004, "0.01100"), (12345.6, "12346"), (0, "0"), (1e-9, "0.000000"), (-3.0, "-3.000")],
)
def test_figures(value, text):
    assert figure(value) == text


def test_seeds_become_mean_and_standard_deviation():
    assert mean_and_spread([4.0]) == "4.000"
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert mean_and_spread([1.0, float("nan")]) == "not finite"


def test_scores_keep_the_order_of_the_tables():
    names = ["recall_lite", "odd_one", "kid", "fid_lite", "fid_own", "fid", "velocity_loss", "validation_loss", "fid"]
    known = ["validation_loss", "velocity_loss", "fid", "fid_lite", "fid_own", "kid", "recall_lite"]
    assert in_order(names) == [*known, "odd_one"]
    headings = {
        "fid_lite": "FID lite ↓",
        "recall": "recall ↑",
        "recall_own": "recall own ↑",
        "frame_fid": "frame-FID ↓",
    }
    assert {name: score_label(name).heading for name in headings} == headings


def test_ours_stand_beside_the_published_numbers(table1):
    found = [result("table1_sweep", 0, 1.0), result("table1_zigzag8", 0, 0.5), result("table1_zigzag8_seed1", 1, 0.7)]
    (view,) = views(table1, RecordCollection(found))
    assert view.title == (
        "Scale smoke: synthetic MMCelebAHQ; 32 px; 64 samples; lite features, not comparable with published scores"
    )
    headings = [column.heading for column in view.columns]
    assert headings.index("FID lite ↓ ours") == headings.index("FID ↓ published") + 1
    sweep, zigzag2, zigzag8 = (cells(view, label) for label in ("sweep", "zigzag-2", "zigzag-8"))
    assert (sweep["FID ↓ published"], sweep["FID lite ↓ ours"]) == ("158.1", "800.0")
    assert (zigzag2["KID ↓ published"], zigzag2["KID lite ↓ ours"]) == ("0.041", "not run")
    assert zigzag8["FID lite ↓ ours"] == "480.0 ± 113.1"
    assert zigzag8["samples seen"] == "640"
    assert any("mean ± standard deviation" in remark for remark in view.remarks)
    assert not any("differ in" in remark for remark in view.remarks)


def test_a_table_that_was_not_run_shows_the_published_numbers(table1):
    (view,) = views(table1, RecordCollection([]))
    assert (view.scale, view.title) == (None, "Not run at any scale")
    assert cells(view, "zigzag-8") == {
        **{"FID ↓ published": "45.5", "FID ↓ ours": "not run", "FDD ↓ published": "26.4", "FDD ↓ ours": "not run"},
        **{"KID ↓ published": "0.011", "KID ↓ ours": "not run"},
    }


def test_each_scale_has_a_view_and_the_index_takes_the_best(table1):
    found = RecordCollection([result("table1_sweep", scale=scale) for scale in ("smoke", "as given", "h100", "paper")])
    assert [view.scale for view in views(table1, found)] == ["paper", "h100", "as given", "smoke"]
    assert one_cell(table1[0], found).startswith("paper: validation loss 0.1000, FID lite 800.0, ")
    assert one_cell(table1[0], found).endswith("(1 seed)")
    assert one_cell(table1[1], found) == "not run"


def test_of_a_seed_the_longest_training_counts(table1):
    short = result("table1_sweep", loss=2.0, training={"samples_seen": 10, "steps": 1})
    found = RecordCollection([result("table1_sweep", loss=1.0), short, result("table1_sweep", loss=3.0)])
    assert [entry.value("fid_lite") for entry in found.of("table1_sweep", "smoke")] == [800.0]
    assert [entry.samples_seen for entry in found.history("table1_sweep", "smoke")] == [10, 640, 640]


def test_rows_that_cannot_be_compared_are_said_to_be_so(table1):
    first = result("table1_sweep")
    other = {**first.record.protocol, "num_fake": 63, "data": {"dataset": "MMCelebAHQ", "standin": False}}
    second = result("table1_zigzag1", protocol=other, training={"samples_seen": 5, "steps": 1})
    odd = result("table1_zigzag8", scores={"fid": ScoreValue(value=3.0, comparable=False)})
    (view,) = views(table1, RecordCollection([first, second, odd]))
    assert "63 samples and 64 samples" in view.title
    assert "synthetic MMCelebAHQ and MMCelebAHQ, real data" in view.title
    text = " ".join(view.remarks)
    assert "differ in num fake." in text
    assert "same number of samples" in text
    assert "Our FID cannot be compared" in text
    assert cells(view, "zigzag-8")["FID lite ↓ ours"] == "not scored"


def test_an_experiment_without_samples_has_losses_and_can_be_compared_with_others(table1):
    whole = result("table1_sweep")
    of_the_loss = {name: whole.record.protocol[name] for name in ("data", "weights", "image_size_px")}
    without = [
        result(
            f"table1_zigzag8{'_seed1' * seed}",
            protocol={**of_the_loss, "seed": seed},
            scores={"validation_loss": ScoreValue(value=0.1)},
        )
        for seed in (0, 1)
    ]
    (view,) = views(table1, RecordCollection([whole, *without]))
    found = cells(view, "zigzag-8")
    assert (found["validation loss ↓ ours"], found["FID lite ↓ ours"]) == ("0.1000 ± 0.0000", "not scored")
    assert "64 samples" in view.title
    assert not any("differ in" in remark for remark in view.remarks)


def test_operations_that_a_record_tells_stand_beside_the_published_ones(repository):
    table6 = by_table(load_experiments(repository / "experiments"))["table 6"]
    counted = result("table6_dit", training={"samples_seen": 640, "gflops": 228.62})
    (view,) = views(table6, RecordCollection([counted, result("table6_uvit")]))
    assert [cells(view, label)["GFLOPs ↓ ours"] for label in ("DiT", "U-ViT", "ZigMa")] == [
        "228.6",
        "not scored",
        "not run",
    ]
    assert "memory GB ↓ ours" not in cells(view, "DiT")
    assert any("a multiply-add as two" in remark for remark in view.remarks)


@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        ({"data": {"dataset": "X", "standin": False, "note": "emoji in the layout of X"}}, "emoji in the layout of X"),
        ({"conditions": {"dataset": "X", "items": {"standin_num_items": 9}}}, "synthetic X"),
        ({"conditions": {"dataset": "X", "items": {}}}, "X"),
        ({"conditions": None}, "unknown data"),
    ],
)
def test_what_the_data_were_is_in_the_title(table1, protocol, data):
    (view,) = views(table1, RecordCollection([result("table1_sweep", protocol=protocol)]))
    assert view.title.startswith(f"Scale smoke: {data}; ")


# ------------------------------------------------------------------------------------------------------------- command
def options(project, out):
    sources = [f"--results={project / 'results'}", f"--experiments={project / 'experiments'}"]
    return [*sources, f"--index={out / 'experiments' / 'README.md'}", f"--out={out / 'docs' / 'results.md'}"]


def test_files_are_written_checked_and_found_stale(project, tmp_path, capsys):
    arguments = options(project, tmp_path)
    assert command.main([*arguments, "--check"]) == 1
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--check"]) == 0
    index, page = tmp_path / "experiments" / "README.md", tmp_path / "docs" / "results.md"
    assert capsys.readouterr().out.splitlines() == [str(index), str(page)]
    (line,) = [line for line in index.read_text().splitlines() if "table1_zigzag8.yaml)" in line]
    for part in ("FID 45.5", "smoke: ", "(2 seeds)", "python -m zigma_pl fit --config experiments/table1_zigzag8.yaml"):
        assert part in line
    text = page.read_text()
    assert "A remark by <hand> & eye: **bold**." in text
    assert "## Table 2: FacesHQ 1024\n\n### Not run at any scale" in text
    page.write_text(text.replace("45.5", "45.4"))
    assert command.main([*arguments, "--check"]) == 1
    error = capsys.readouterr().err
    assert str(page) in error
    assert str(index) not in error


def test_links_of_the_tables_lead_to_files(project, tmp_path):
    out = project / "written"
    assert command.main(options(project, out)) == 0
    page = out / "docs" / "results.md"
    links = [part.partition(")")[0] for part in page.read_text().split("](")[1:]]
    assert any(link.endswith("table1_zigzag8_seed1.json") for link in links)
    assert [link for link in links if not (page.parent / link).is_file()] == []
    shutil.rmtree(out)


def test_half_written_and_newer_records_are_one_line(tmp_path):
    whole = write_run(tmp_path, "table1_sweep", 0, 1.0).read_text()
    record = tmp_path / "results" / "smoke" / "table1_sweep.json"
    for text, part in ((whole[: len(whole) // 2], "cannot be used"), (whole.replace('n": 1', 'n": 99', 1), "newer")):
        record.write_text(text)
        with pytest.raises(UserError, match=part) as caught:
            load_results(tmp_path)
        assert str(record) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_json_files_are_no_records(tmp_path):
    (tmp_path / "scan.json").write_text(json.dumps({"subject": "scan"}))
    (tmp_path / "list.json").write_text("[1]")
    assert load_results(tmp_path) == load_results(tmp_path / "nowhere") == []


def test_a_record_without_a_row_is_left_out_and_said(project, tmp_path, capsys):
    write_result(make_record("odd", 0, 1.0, Path("p"), False, Path("l")), tmp_path)
    arguments = [f"--results={tmp_path}", *options(project, tmp_path)[1:]]
    assert command.main(arguments) == 0
    assert "odd.json: left out" in capsys.readouterr().err


def test_the_committed_tables_are_what_rows_and_committed_records_give(repository, committed_results, tmp_path, capsys):
    for name in ("experiments", "docs"):
        shutil.copytree(repository / name, tmp_path / name)
    for name in committed_results:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, tmp_path / name)
    if not (tmp_path / "docs" / "results.md").is_file():
        pytest.skip("docs/results.md is not there: run `python -m zigma_pl tables`")
    assert command.main([*options(tmp_path, tmp_path), "--check"]) == 0, capsys.readouterr().err
