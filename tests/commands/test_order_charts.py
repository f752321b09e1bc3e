"""The figure of predicted and measured losses: its panels, and labels that can be read."""

import itertools

import numpy as np
import pytest

from zigma_pl.cli.commands.order_charts import Panel, draw_agreement

Text = pytest.importorskip("matplotlib.text").Text


def panel(num_points, seed=0):
    rng = np.random.default_rng(seed)
    predictions = rng.uniform(0.9, 1.0, num_points)
    losses = 0.1 + 0.3 * (predictions - 0.9) + rng.normal(0, 0.002, num_points)
    names = [f"table1x_scheme{index}" for index in range(num_points)]
    return Panel(names, losses.tolist(), predictions.tolist(), [index % 2 == 0 for index in range(num_points)])


@pytest.mark.parametrize(("num_panels", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (5, 3, 2)])
def test_at_most_three_panels_in_a_row(num_panels, columns, rows):
    figure = draw_agreement({str(index): panel(3) for index in range(num_panels)})
    assert [axes.get_title() for axes in figure.axes] == [str(index) for index in range(num_panels)]
    figure.draw_without_rendering()
    corners = np.array([axes.get_position().p0 for axes in figure.axes]).round(2)
    assert len(set(corners[:, 0])) == columns
    assert len(set(corners[:, 1])) == rows


@pytest.mark.parametrize("num_panels", [1, 5])
def test_labels_cover_no_point_and_no_other_label(num_panels):
    figure = draw_agreement({str(index): panel(24, index) for index in range(num_panels)})
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = [Text.get_window_extent(label) for label in axes.texts]  # without the line to the point
        assert len(labels) == 24
        assert not any(one.overlaps(other) for one, other in itertools.combinations(labels, 2))
        points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() != "None"])
        for point in axes.transData.transform(points):
            assert not any(label.contains(*point) for label in labels)
