import json
import math

import pytest

from zigma_pl.errors import UserError
from zigma_pl.evaluation.record import ResultRecord, Score, read_record, write_record


@pytest.fixture
def record():
    scores = {
        "validation_loss": Score(0.1, by_time=[0.1, None]),
        "kid_lite": Score(0.25, comparable=False, std=0.01),
    }
    return ResultRecord("row", "smoke", scores, {"seed": 0}, {"steps": 4}, {"commit": None}, {"grid": "g.png"})


def test_written_record_is_read_back(record, tmp_path):
    path = write_record(record, tmp_path / "results")
    assert path == tmp_path / "results" / "row.json"
    assert read_record(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["row.json"]
    plain = json.loads(path.read_text())
    assert plain["format_version"] == 1
    assert plain["scores"]["kid_lite"] == {"value": 0.25, "comparable": False, "std": 0.01}
    assert plain["scores"]["validation_loss"]["by_time"] == [0.1, None]


def test_score_that_is_not_finite_is_still_json(record, tmp_path):
    record.scores["fid"] = Score(math.nan, comparable=True)
    path = write_record(record, tmp_path)
    assert json.loads(path.read_text())["scores"]["fid"]["value"] is None
    assert math.isnan(read_record(path).scores["fid"].value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no whole result record"),
        ('{"format_version": 1, "row": "ro', "no whole result record"),
        ('{"format_version": 1, "row": "row"}', "no whole result record"),
        ("[1]", "no whole result record"),
        ('{"format_version": 2}', "newer zigma_pl"),
    ],
)
def test_half_written_or_newer_record_is_one_line(text, message, tmp_path):
    path = tmp_path / "row.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json"):
        read_record(tmp_path / "nothing.json")
