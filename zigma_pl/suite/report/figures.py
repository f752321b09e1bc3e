"""The charts of a table at one scale: losses and scores against samples seen, scores by experiment, loss by time."""

from collections.abc import Callable

from zigma_pl.suite.report.charts import Chart, Series, dot_chart, line_chart
from zigma_pl.suite.report.curves import Points, averaged, read_curves
from zigma_pl.suite.report.results import Result, Results
from zigma_pl.suite.report.scores import in_order, score_of
from zigma_pl.suite.report.tables import View

SAMPLES_SEEN = "samples seen"
NUM_PARTS = 100  # of a long training curve, each shown by its mean

Draw = Callable[[Result], Points]


def charts(view: View, results: Results) -> list[Chart]:
    """Return the charts for which there is something to draw."""
    read = {result.file: _curves(result) for line in view.lines for result in line.results}

    def logged(tag_name: str) -> Draw:
        return lambda result: averaged(over_samples(result, read[result.file].get(tag_name, [])), NUM_PARTS)

    drawn = [
        line_chart("Training loss", SAMPLES_SEEN, "training loss", _series(view, logged("train/loss"))),
        line_chart("Validation loss", SAMPLES_SEEN, "validation loss", _series(view, logged("validation/loss"))),
        line_chart(
            "Validation loss by time", "t, from data (0) to noise (1)", "validation loss", _series(view, _loss_by_time)
        ),
    ]
    names = in_order([name for line in view.lines for result in line.results for name in result.record.scores])
    drawn += [_score_chart(view, results, name) for name in names]
    return [chart for chart in drawn if chart is not None]


def _series(view: View, draw: Draw) -> list[Series]:
    """Return a line for each record of each experiment."""
    return [
        Series(
            line.experiment.label if result.seed is None else f"{line.experiment.label}, seed {result.seed}",
            place,
            draw(result),
        )
        for place, line in enumerate(view.lines)
        for result in line.results
    ]


def _score_chart(view: View, results: Results, name: str) -> Chart | None:
    """Return a score against samples seen if it was computed more than once in a training, else by experiment."""
    assert view.scale is not None
    title = score_of(name).heading
    histories: list[Series] = []
    for place, line in enumerate(view.lines):
        history = results.history(line.experiment.name, view.scale)
        for seed in dict.fromkeys(result.seed for result in history):
            of_seed = [result for result in history if result.seed == seed]
            points = [(float(result.samples_seen or 0), result.value(name)) for result in of_seed]
            histories.append(Series(line.experiment.label, place, [(x, y) for x, y in points if y is not None]))
    if any(len({x for x, _ in history.points}) > 1 for history in histories):
        return line_chart(title, SAMPLES_SEEN, title, histories)
    rows = []
    for place, line in enumerate(view.lines):
        values = [result.value(name) for result in line.results]
        rows.append(Series(line.experiment.label, place, [(value, 0.0) for value in values if value is not None]))
    alone = sum(len(row.points) for row in rows) < 2  # the table says it better
    return None if alone else dot_chart(f"{title} by row", title, rows)


def _loss_by_time(result: Result) -> Points:
    score = result.record.scores.get("validation_loss")
    bins = (score.by_time if score else None) or []
    return [((place + 0.5) / len(bins), value) for place, value in enumerate(bins) if value is not None]


def _curves(result: Result) -> dict[str, Points]:
    folder = result.record.training.get("log_folder")
    return read_curves(result.locate(folder)) if folder else {}


def over_samples(result: Result, points: Points) -> Points:
    """Return a curve against samples seen; nothing where the record does not tell how many a step takes."""
    steps = result.record.training.get("steps")
    if not steps or not result.samples_seen:
        return []
    return [((step + 1) * result.samples_seen / steps, value) for step, value in points]  # Lightning counts from 0
