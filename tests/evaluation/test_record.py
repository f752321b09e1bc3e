"""Result records on disk. Kind: files that others wrote give a record or one line; names in them that become paths."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import parse_record
from zigma_pl.evaluation.record import ResultRecord, ScoreValue, read_result, write_result

REPOSITORY = Path(__file__).parents[2]
RECORDS = [path for path in sorted((REPOSITORY / "results").rglob("*.json")) if '"scores"' in path.read_text()]


def make(**changes):
    scores = {
        "validation_loss": ScoreValue(value=0.1, by_time=[0.1, None]),
        "kid_lite": ScoreValue(value=0.25, comparable=False, std=0.01),
    }
    parts = {"scores": scores, "protocol": {"seed": 0}, "training": {"steps": 4}, "machine": {"commit": None}}
    return ResultRecord(**{"row": "row", "scale": "smoke", **parts, "pictures": {"grid": "g.png"}, **changes})


def test_written_record_is_read_back(tmp_path):
    record = make()
    path = write_result(record, tmp_path / "results")
    assert path == tmp_path / "results" / "row.json"
    assert read_result(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["row.json"]
    plain = json.loads(path.read_text())
    assert plain["format_version"] == 1
    assert plain["scores"]["kid_lite"] == {"value": 0.25, "comparable": False, "std": 0.01}
    assert plain["scores"]["validation_loss"]["by_time"] == [0.1, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_score_that_is_not_finite_is_still_json(value, tmp_path):
    path = write_result(make(scores={"fid": ScoreValue(value=value)}, protocol={"odd": value}), tmp_path)
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert plain["scores"]["fid"]["value"] is None
    assert math.isnan(read_result(path).scores["fid"].value)


def test_every_committed_record_is_read_and_written_with_the_same_values(tmp_path):
    assert len(RECORDS) > 60
    for path in RECORDS:
        written = write_result(read_result(path), tmp_path)
        assert json.loads(written.read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format_version": 1, "row": "ro',
        '{"format_version": 1, "row": "row"}',
        '{"format_version": 2}',
        "[1]",
        "[" * 100_000,
        '{"format_version": ' + "9" * 5000 + "}",
        '{"row": "\\ud800"}',
    ],
)
def test_damaged_or_newer_record_is_one_line(text, tmp_path):
    path = tmp_path / "row.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_result(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "", ".hidden", "a\nb", "<script>", "x" * 300, "a|b", 7])
@pytest.mark.parametrize("part", ["row", "scale", "scores", "dataset"])
def test_names_that_are_no_names_are_refused(part, name, tmp_path):
    plain = json.loads(make().model_dump_json())
    if part == "scores":
        plain["scores"][str(name) if name != 7 else "a/b"] = {"value": 1.0}
    elif part == "dataset":
        plain["protocol"]["data"] = {"dataset": name}
    else:
        plain[part] = name
    with pytest.raises(UserError, match=r"row\.json"):
        parse_record(ResultRecord, json.dumps(plain), "row.json")


def test_a_missing_file_a_folder_and_a_pipe_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("nothing.json", "pipe.json", "folder.json"):
        with pytest.raises(UserError, match=name):
            read_result(tmp_path / name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=200)
@given(content=st.binary(max_size=200) | st.builds(lambda plain: json.dumps(plain).encode(), VALUES))
def test_any_bytes_give_a_record_or_one_line(content):
    with suppress(UserError):
        parse_record(ResultRecord, content, "row.json")
