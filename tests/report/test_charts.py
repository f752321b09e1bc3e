import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from report.synthetic import BATCH_SIZE, STEPS, make_record

from zigma_pl.core.errors import UserError
from zigma_pl.suite.report.charts import FAINT, INK, LIGHT, MUTED, Series, dot_chart, line_chart, path_chart
from zigma_pl.suite.report.curves import VELOCITY_LOSS, averaged, over_samples, read_curves
from zigma_pl.suite.report.experiments import About, Experiment
from zigma_pl.suite.report.figures import figures
from zigma_pl.suite.report.own_runs import logged_runs
from zigma_pl.suite.report.results import RecordCollection, RecordFile, load_results
from zigma_pl.suite.report.tables import Line, View

COLOURS = [*LIGHT, INK[0], MUTED[0], FAINT[0]]


def curves_of(svg):
    """Paths drawn in a colour of an experiment, by colour; each a list of (x, y) in the picture."""
    found = {}
    for data, colour in re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--c(\w+)\); stroke-width: 1.5', svg):
        found[f"#{colour}"] = [tuple(map(float, point)) for point in re.findall(r"[ML] (\S+) (\S+)", data)]
    return found


def test_lines_leave_out_what_is_not_finite_and_say_where_they_end():
    points = [(0.0, 1.0), (10.0, math.nan), (20.0, 0.5), (30.0, 1e300), (40.0, 0.75)]
    chart = line_chart("Loss", "samples", "loss", [Series("<a>", 9, points), Series("b", 2, [(5.0, 0.6)])])
    places = curves_of(chart.svg)[LIGHT[1]]
    assert len(places) == 3
    assert places[1][1] > places[2][1] > places[0][1]  # larger is higher
    assert "stroke-dasharray" in chart.svg
    assert (chart.title, chart.text) == ("Loss", "Loss. loss against samples: <a> ends at 0.7500; b ends at 0.6000.")
    assert line_chart("Loss", "samples", "loss", [Series("a", 0, [(1.0, math.inf)])]) is None


def test_a_wide_range_is_logarithmic():
    series = [Series("a", 0, [(0.0, 0.01), (1.0, 0.1), (2.0, 1.0)])]
    heights = [y for _, y in curves_of(line_chart("Loss", "samples", "loss", series).svg)[LIGHT[0]]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_the_x_axis_is_logarithmic_only_if_lines_end_far_apart():
    def widths(last):
        lines = [Series("a", 0, [(1.0, 1.0), (10.0, 1.0), (100.0, 1.0)]), Series("b", 1, [(1.0, 1.0), (last, 1.0)])]
        places = [x for x, _ in curves_of(line_chart("Loss", "operations", "loss", lines, log_x=True).svg)[LIGHT[0]]]
        return places[1] - places[0], places[2] - places[1]

    first, second = widths(last=1000.0)
    assert first == pytest.approx(second, abs=0.1)
    first, second = widths(last=90.0)
    assert second == pytest.approx(10 * first, rel=0.01)


def test_velocity_loss_is_plotted_over_the_cost_of_training(tmp_path):
    record = make_record("table1_sweep", 0, 1.0, Path("pictures"), False, Path("logs"))
    record = record.model_copy(update={"training": {**record.training, "seconds": 50.0, "gflops": 2.0}})
    result = RecordFile(tmp_path / "table1_sweep.json", record)
    experiment = Experiment(tmp_path / "table1_sweep.yaml", About(title="scans", table="table 1", name="sweep"))
    view = View("smoke", "title", (), (Line(experiment, (), (result,)),), ())
    seen = STEPS * BATCH_SIZE
    curves = {result.file: {VELOCITY_LOSS: [(seen / 2, 0.4), (seen, 0.3)]}}
    charts = {chart.title: chart.data for chart in figures(view, RecordCollection([result]), curves, "fid_lite").others}
    (line,) = charts["Velocity loss by training time"][2]
    assert line.points == [(25.0, 0.4), (50.0, 0.3)]
    (line,) = charts["Velocity loss by operations"][2]
    petaflops = 3 * 2e9 * seen / 1e15
    assert line.points == [(pytest.approx(petaflops / 2), 0.4), (pytest.approx(petaflops), 0.3)]
    assert "Velocity loss by operations" not in {
        chart.title for chart in figures(view, RecordCollection([result]), {result.file: {}}, "fid_lite").others
    }


@pytest.mark.parametrize(("last", "label"), [(1.0, "0.2"), (500.0, "200"), (200_000.0, "100k")])
def test_only_thousands_are_shortened_on_the_x_axis(last, label):
    for chart in (
        line_chart("Loss", "t", "loss", [Series("a", 0, [(0.0, 1.0), (last, 2.0)])]),
        dot_chart("FID", "FID", [Series("a", 0, [(0.0, 0), (last, 0)])]),
    ):
        labels = re.findall(r">([^<>]+)</text>", chart.svg)
        assert label in labels
        assert not [text for text in labels if re.fullmatch(r"[\d.]+[mµn]", text)]


def test_a_dot_for_each_seed_and_a_place_for_experiments_without():
    series = [Series("sweep, $x", 0, [(1.0, 0), (3.0, 0)]), Series("zigzag", 1, [])]
    chart = dot_chart("FID", "FID ↓", series)
    assert len(re.findall(rf"<use [^>]*fill: var\(--c{LIGHT[0][1:]}\)", chart.svg)) == 2
    assert "sweep, $x  2.000" in chart.svg
    assert "zigzag  not run" in chart.svg
    assert dot_chart("FID", "FID ↓", [Series("zigzag", 1, [])]) is None


def test_files_are_well_formed_follow_dark_mode_and_are_the_same_each_time():
    def draw():
        order = np.arange(16)
        return [line_chart("a<b", "x&y", "z", [Series("s", 0, [(0.0, 1.0)])]), path_chart("sweep", order, 4, 0.8)]

    for chart, again in zip(draw(), draw(), strict=True):
        ElementTree.fromstring(chart.svg)
        assert chart.svg == again.svg
        drawn = chart.svg.partition("</style>")[2]
        assert not [colour for colour in COLOURS if colour in drawn]  # each is a variable
        assert re.findall(r"#[0-9a-f]{6}", drawn) in ([], ["#000000"] * drawn.count("#000000"))
        assert "prefers-color-scheme: dark" in chart.svg


def test_long_curves_are_averaged_and_short_ones_are_not():
    line = [(float(step), 2.0 * step) for step in range(1000)]
    means = averaged(line, 10)
    assert means == [(100 * part + 49.5, 2 * (100 * part + 49.5)) for part in range(10)]
    assert averaged(line[:20], 10) == line[:20]


def test_curves_go_back_to_the_run_that_was_continued(project):
    logs = project / "logs" / "smoke" / "table1_sweep"
    both, first = read_curves(logs / "version_1")["train/loss"], read_curves(logs / "version_0")["train/loss"]
    assert [step for step, _ in first] == list(range(STEPS * 3 // 4))
    assert [step for step, _ in both] == list(range(STEPS))
    assert dict(both)[0] == pytest.approx(1.1)
    assert read_curves(project / "nowhere") == {}


def test_curves_of_csv_logger_are_read_and_other_files_are_refused(tmp_path):
    logger = CSVLogger(tmp_path, "mine", "version_0")
    logger.log_metrics({"train/loss": 2.0, "train/learning_rate": 0.1}, step=0)
    logger.log_metrics({"train/loss": 1.0}, step=49)
    logger.log_metrics({"validation/loss": math.nan}, step=49)
    logger.save()
    folder = tmp_path / "mine" / "version_0"
    curves = read_curves(folder)
    assert curves["train/loss"] == [(0, 2), (49, 1)]
    assert [step for step, _ in curves["validation/loss"]] == [49]
    assert [run.name for run in logged_runs(tmp_path, [], [])] == ["mine/version_0"]
    for wrong in ("train/loss\n1\n", "step,train/loss\n1,x\n", "step,train/loss\n,1\n", b"step,train/loss\n\xff,1"):
        (folder / "metrics.csv").write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
        with pytest.raises(UserError, match=r"metrics\.csv"):
            read_curves(folder)


def test_the_last_step_is_at_all_samples_seen(project):
    found = {result.file.stem: result for result in load_results(project / "results")}["table1_sweep"]
    points = over_samples(found, read_curves(found.locate(found.record.training["log_folder"]))["train/loss"])
    assert [points[0][0], points[-1][0]] == [BATCH_SIZE, STEPS * BATCH_SIZE]


def test_files_are_found_from_another_folder(project, in_tmp):
    found = {result.file.stem: result for result in load_results(project / "results")}["table1_sweep"]
    assert found.locate(found.record.pictures["grid"]).is_file()
    assert not found.locate("nowhere.png").exists()
    assert found.samples_seen == STEPS * BATCH_SIZE
