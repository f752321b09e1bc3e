"""Charts of a table at one scale: losses and scores over samples seen, scores by experiment, loss by time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.suite.report.charts import Chart, Series, dot_chart, line_chart
from zigma_pl.suite.report.curves import VELOCITY_LOSS, Points
from zigma_pl.suite.report.results import RecordCollection, RecordFile
from zigma_pl.suite.report.scores import LOSSES, in_order, score_label
from zigma_pl.suite.report.tables import View

SAMPLES_SEEN = "samples seen"
SECONDS = "training time in seconds, with validation"
OPERATIONS = "operations of training, PFLOP"
PASSES = 3  # operations of a training step divided by those of a forward pass

CurveOf = Callable[[RecordFile], Points]


@dataclass(frozen=True)
class Figures:
    """The charts of a view: the most informative ones, and the others."""

    main: tuple[Chart, ...]
    others: tuple[Chart, ...]


def figures(view: View, results: RecordCollection, curves: Mapping[Path, Mapping[str, Points]], score: str) -> Figures:
    """Return the charts for which there are data.

    Args:
        view: a table at one scale.
        results: all records.
        curves: the losses over samples seen by tag, for the file of each record.
        score: name of the score of the main chart, next to the validation loss.
    """
    training = line_chart("Training loss", SAMPLES_SEEN, "training loss", _series(view, _logged(curves, "train/loss")))
    losses = {
        name: line_chart(label.capitalize(), SAMPLES_SEEN, label, _series(view, _logged(curves, tag)))
        for (name, label), tag in zip(LOSSES.items(), ("validation/loss", VELOCITY_LOSS), strict=True)
    }
    by_time = line_chart(
        "Validation loss by time", "t, from data (0) to noise (1)", "validation loss", _series(view, _loss_by_time)
    )
    names = in_order([name for line in view.lines for result in line.results for name in result.record.scores])
    by_score = {name: _score_chart(view, results, name) for name in names}
    by_score |= {name: chart for name, chart in losses.items() if chart is not None}  # more points than the records
    main = [by_score.pop(name, None) for name in dict.fromkeys((score, "validation_loss"))]
    others = [*_by_cost(view, curves), training, by_time, *by_score.values()]
    return Figures(tuple(filter(None, main)), tuple(filter(None, others)))


def _by_cost(view: View, curves: Mapping[Path, Mapping[str, Points]]) -> list[Chart | None]:
    """Return the velocity loss over the time and over the operations of training."""

    def over(cost_of: Callable[[RecordFile], float | None]) -> CurveOf:
        def curve_of(result: RecordFile) -> Points:
            cost, seen = cost_of(result), result.samples_seen
            points = curves[result.file].get(VELOCITY_LOSS, [])
            return [(x * cost / seen, y) for x, y in points] if cost and seen else []

        return curve_of

    return [
        line_chart("Velocity loss by training time", SECONDS, "velocity loss", _series(view, over(_seconds))),
        line_chart(
            "Velocity loss by operations", OPERATIONS, "velocity loss", _series(view, over(petaflops)), log_x=True
        ),
    ]


def _seconds(result: RecordFile) -> float | None:
    return result.record.training.get("seconds")


def petaflops(result: RecordFile) -> float | None:
    """Return the operations of a training in 10^15; None if the record has no count for the network."""
    gflops = result.record.training.get("gflops")
    return PASSES * gflops * (result.samples_seen or 0) / 1e6 if gflops else None


def _logged(curves: Mapping[Path, Mapping[str, Points]], tag: str) -> CurveOf:
    return lambda result: curves[result.file].get(tag, [])


def _series(view: View, curve_of: CurveOf) -> list[Series]:
    """Return one line for each record of each experiment."""
    return [
        Series(
            line.experiment.label if result.seed is None else f"{line.experiment.label}, seed {result.seed}",
            index,
            curve_of(result),
        )
        for index, line in enumerate(view.lines)
        for result in line.results
    ]


def _score_chart(view: View, results: RecordCollection, name: str) -> Chart | None:
    """Return a score over samples seen if a training was scored more than once, else by experiment."""
    assert view.scale is not None
    title = score_label(name).heading
    histories: list[Series] = []
    for index, line in enumerate(view.lines):
        history = results.history(line.experiment.name, view.scale)
        for seed in dict.fromkeys(result.seed for result in history):
            of_seed = [result for result in history if result.seed == seed]
            points = [(float(result.samples_seen or 0), result.value(name)) for result in of_seed]
            histories.append(Series(line.experiment.label, index, [(x, y) for x, y in points if y is not None]))
    if any(len({x for x, _ in history.points}) > 1 for history in histories):
        return line_chart(title, SAMPLES_SEEN, title, histories)
    rows = []
    for index, line in enumerate(view.lines):
        if not line.results:
            continue
        values = [result.value(name) for result in line.results]
        rows.append(Series(line.experiment.label, index, [(value, 0.0) for value in values if value is not None]))
    alone = sum(len(row.points) for row in rows) < 2  # one number is enough in the table
    return None if alone else dot_chart(f"{title} by experiment", title, rows)


def _loss_by_time(result: RecordFile) -> Points:
    score = result.record.scores.get("validation_loss")
    bins = (score.by_time if score else None) or []
    return [((index + 0.5) / len(bins), value) for index, value in enumerate(bins) if value is not None]
