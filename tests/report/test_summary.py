"""The summary of the report. Kinds: the order of experiments; what may be said with few seeds; the paper's order."""

from pathlib import Path

import pytest
from PIL import Image
from report.synthetic import make_record

from zigma_pl.core.grid import tile
from zigma_pl.evaluation.record import ScoreValue
from zigma_pl.suite.report.experiments import About, Experiment, Paper
from zigma_pl.suite.report.gallery import first_row
from zigma_pl.suite.report.results import RecordCollection, RecordFile
from zigma_pl.suite.report.summary import better_elsewhere, finding, headline, overview, ranking
from zigma_pl.suite.report.tables import views

FID = {"a": 100.0, "b": 50.0, "c": 20.0}  # published


def experiment(name, published=FID, table="table 1"):
    paper = Paper(published={"FID": str(published[name])} if name in published else {}, left_open="nothing")
    return Experiment(Path(f"{name}.yaml"), About(title="t", table=table, name=name.upper(), paper=paper))


def record(name, seed, scale="pilot", **scores):
    made = make_record(name if seed == 0 else f"{name}_seed{seed}", seed, 1.0, Path("p"), False, Path("l"))
    values = {score: ScoreValue(value=value) for score, value in scores.items()}
    changed = made.model_copy(update={"scale": scale, "scores": values})
    return RecordFile(Path(f"{scale}/{name}_{seed}.json"), changed)


def view_of(records, names=("a", "b", "c"), **options):
    return views([experiment(name, **options) for name in names], RecordCollection(records))


def test_experiments_are_ranked_by_the_mean_of_the_first_score_that_two_have():
    records = [record("a", 0, fid_lite=30.0), record("b", 0, fid_lite=10.0), record("b", 1, fid_lite=14.0)]
    (view,) = view_of([*records, record("c", 0, kid_lite=1.0)])
    found = ranking(view)
    assert found.score.name == "fid_lite"
    assert [(one.label, one.mean) for one in found.ranked] == [("B", 12.0), ("A", 30.0)]
    assert ranking(view, "kid_lite") is None
    line = headline("in table 1", found, [])
    assert [part in line for part in ("B", "table 1", "12.00", "A", "30.00")] == [True] * 5


def test_higher_is_better_for_recall_and_values_that_are_not_finite_do_not_count():
    records = [record("a", 0, recall=0.1), record("b", 0, recall=0.3), record("c", 0, recall=float("nan"))]
    (view,) = view_of(records)
    assert [one.label for one in ranking(view).ranked] == ["B", "A"]
    assert ranking(view_of(records[:1])[0]) is None
    records[0].record.protocol["data"] = {"dataset": "MMCelebAHQ", "standin": False, "note": "other data"}
    assert ranking(view_of(records)[0]) is None


@pytest.mark.parametrize(
    ("seeds_of_b", "part"),
    [((20.0,), "one seed each"), ((20.0, 30.0), "Every seed of A"), ((5.0, 40.0), "overlap")],
)
def test_the_summary_says_how_certain_the_order_is(seeds_of_b, part):
    seeds_of_a = (10.0,) if len(seeds_of_b) == 1 else (10.0, 12.0)
    records = [record("a", seed, fid_lite=value) for seed, value in enumerate(seeds_of_a)]
    records += [record("b", seed, fid_lite=value) for seed, value in enumerate(seeds_of_b)]
    (view,) = view_of(records)
    assert part in " ".join(finding(ranking(view), view, [], []))


@pytest.mark.parametrize(
    ("ours", "parts"),
    [
        ((3.0, 2.0, 1.0), ["The paper has the same order by FID"]),
        ((2.0, 3.0, 1.0), ["In the paper, B is better than A; otherwise"]),
        ((1.0, 2.0, 3.0), ["B is better than A", "C is better than A", "C is better than B"]),
    ],
)
def test_the_order_is_compared_with_the_paper(ours, parts):
    records = [record(name, 0, fid_lite=value) for name, value in zip("abc", ours, strict=True)]
    (view,) = view_of(records)
    text = " ".join(finding(ranking(view), view, [], []))
    assert all(part in text for part in parts)
    assert ("otherwise" in text) == (ours == (2.0, 3.0, 1.0))


def test_the_other_score_and_other_scales_are_mentioned():
    scores = [{"fid_lite": 1.0, "validation_loss": 0.3}, {"fid_lite": 2.0, "validation_loss": 0.2}]
    records = [record(name, 0, **of_one) for name, of_one in zip("ab", scores, strict=True)]
    small = [record(name, 0, scale="pilot2", fid_lite=value) for name, value in (("a", 9.0), ("b", 8.0))]
    view, other = view_of([*records, *small])
    text = " ".join(finding(ranking(view), view, [other], []))
    assert "B has the lowest validation loss" in text
    assert "B is best at scale pilot2" in text


def test_the_velocity_loss_is_compared_rather_than_the_loss_of_each_objective():
    scores = [{"velocity_loss": 0.1, "validation_loss": 0.3}, {"velocity_loss": 0.2, "validation_loss": 0.2}]
    records = [record(name, 0, **of_one) for name, of_one in zip("ab", scores, strict=True)]
    (view,) = view_of(records)
    assert (ranking(view).score.name, ranking(view).best.label) == ("velocity_loss", "A")
    records = [record(name, 0, fid_lite=1.0, **of_one) for name, of_one in zip("ab", scores, strict=True)]
    (view,) = view_of(records)
    assert "A also has the lowest velocity loss" in " ".join(finding(ranking(view), view, [], []))


def test_better_experiments_of_other_tables_are_named_if_they_are_comparable():
    records = [record(name, 0, fid_lite=value) for name, value in (("a", 3.0), ("b", 4.0), ("c", 2.0), ("d", 5.0))]
    (view,) = view_of(records, "ab")
    (controls,) = view_of(records, "cd", table="table 1x")
    found, others = ranking(view), {"table 1x": ranking(controls)}
    ((table, better),) = better_elsewhere(found, others)
    assert (table, better.label) == ("table 1x", "C")
    assert "C of table 1x" in headline("in table 1", found, [(table, better)])
    assert better_elsewhere(others["table 1x"], {"table 1": found}) == []
    records[2].record.protocol["num_fake"] = 7
    assert better_elsewhere(found, others) == []


def test_the_overview_says_what_was_not_done():
    experiments = [experiment(name) for name in "abc"]
    assert overview(experiments, RecordCollection([])) == ["0 of 3 experiments were run."]
    text = " ".join(overview(experiments, RecordCollection([record("a", 0, fid_lite=1.0)])))
    for part in ("1 of 3", "scale pilot", "none at the scale of the paper", "synthetic MMCelebAHQ", "lite"):
        assert part in text
    real = record("a", 0, scale="paper", fid=1.0)
    real.record.protocol["data"] = {"dataset": "MMCelebAHQ", "standin": False}
    text = " ".join(overview(experiments, RecordCollection([real])))
    assert "none at" not in text
    assert "synthetic" not in text
    assert "lite" not in text


@pytest.mark.parametrize(("labels", "min_side_px"), [(None, 32), (None, 64), (["a", "b", "c", "d"] * 2, 64)])
def test_the_samples_of_the_first_row_are_found(labels, min_side_px):
    samples = [Image.new("RGB", (32, 32), (30 * index, 0, 0)) for index in range(8)]
    grid = tile(samples, 4, labels, min_side_px=min_side_px)
    boxes = first_row(grid.size, 0 if labels is None else 4, 32)
    colours = [grid.crop((left, top, left + side, top + side)).getcolors() for left, top, side in boxes]
    assert colours == [[(min_side_px**2, (30 * index, 0, 0))] for index in range(4)]
    assert first_row((100, 99), 0, 32) == first_row((0, 0), 4, None) == []
