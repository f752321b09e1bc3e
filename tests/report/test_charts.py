import math
import re

import pytest
from report.synthetic import BATCH_SIZE, STEPS

from zigma_pl.report.charts import HEIGHT, LEFT, WIDTH, Axis, Series, compact, dot_chart, line_chart, tick_labels
from zigma_pl.report.curves import averaged, read_curves
from zigma_pl.report.figures import over_samples
from zigma_pl.report.markup import Markup, join, tag
from zigma_pl.report.results import load_results


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b & c", tag("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"
    assert tag("img", src='x"y', alt="", class_="z", aria_label=None, hidden=True) == (
        '<img src="x&quot;y" alt="" class="z" hidden>'
    )
    assert join(["a", [Markup("<br>"), None]], "&") == "a<br>&amp;"


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 64000, False, [0, 20000, 40000, 60000]),
        (-3, 3, False, [-2, 0, 2]),
        (0.09, 1.2, True, [0.1, 0.2, 0.5, 1.0]),
        (1e-6, 10, True, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round(low, high, logarithmic, ticks):
    assert Axis(low, high, 0, 100, logarithmic).ticks() == pytest.approx(ticks)


def test_ends_of_an_axis_are_its_values():
    for axis in (Axis(2, 8, 10, 20), Axis(2, 8, 10, 20, logarithmic=True)):
        assert [axis(2), axis(8)] == pytest.approx([10, 20])
    assert Axis(2, 8, 10, 20)(5) == pytest.approx(15)
    assert Axis(2, 8, 10, 20, logarithmic=True)(4) == pytest.approx(15)


def test_ticks_that_lie_close_together_are_told_apart():
    assert tick_labels([4270.0, 4275.0, 4280.0]) == ["4.27k", "4.275k", "4.28k"]
    assert tick_labels([0.0, 0.5]) == ["0", "0.5"]


def test_compact():
    assert [compact(value) for value in (0, 0.05, 200, 1500, 2.4e7)] == ["0", "0.05", "200", "1.5k", "24M"]


def test_lines_lie_in_the_picture_and_leave_out_what_is_not_finite():
    points = [(0.0, 1.0), (10.0, math.nan), (20.0, 0.5), (40.0, 0.75)]
    chart = line_chart("Loss", "samples", "loss", [Series("<a>", 9, points), Series("b", 1, [(5.0, 0.6)])])
    drawn = re.search(r'points="([^"]+)"', chart)[1].split()
    assert len(drawn) == 3
    places = [tuple(map(float, point.split(","))) for point in drawn]
    assert places[0][0] == LEFT
    assert all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places[0][1] < places[2][1] < places[1][1]  # larger is higher
    assert 'class="line s1 dashed"' in chart
    assert "&lt;a&gt; ends at 0.7500; b ends at 0.6000" in chart
    assert line_chart("Loss", "samples", "loss", [Series("a", 0, [(1.0, math.inf)])]) is None


def test_a_dot_for_each_seed_and_a_place_for_rows_without():
    rows = [Series("sweep", 0, [(1.0, 0), (3.0, 0)]), Series("zigzag", 1, [])]
    chart = dot_chart("FID", "FID ↓", rows)
    assert chart.count("<circle") == 2
    assert ">2.000<" in chart
    assert ">not run<" in chart
    assert dot_chart("FID", "FID ↓", [Series("zigzag", 1, [])]) is None


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


def test_the_last_step_is_at_all_samples_seen(project):
    found = {result.file.stem: result for result in load_results(project / "results")}["table1_sweep"]
    points = over_samples(found, read_curves(found.locate(found.record.training["log_folder"]))["train/loss"])
    assert [points[0][0], points[-1][0]] == [BATCH_SIZE, STEPS * BATCH_SIZE]


def test_files_are_found_from_another_folder(project, in_tmp):
    found = {result.file.stem: result for result in load_results(project / "results")}["table1_sweep"]
    assert found.locate(found.record.pictures["grid"]).is_file()
    assert not found.locate("nowhere.png").exists()
    assert found.samples_seen == STEPS * BATCH_SIZE
