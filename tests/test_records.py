"""Kind: JSON files of ours. Any bytes give the record or one line that names the file."""

from typing import ClassVar

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Name, Record, parse_record, read_record, write_record


class Example(Record):
    remedy: ClassVar[str] = "write it again"

    name: Name
    counts: dict[str, int]


def test_round_trip(tmp_path):
    record = Example(name="as given", counts={"train": 3})
    write_record(record, tmp_path / "record.json")
    assert read_record(Example, tmp_path / "record.json") == record


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"name": "a"}',
        b'{"name": "a", "counts": {"train": "3"}}',
        b'{"name": "a", "counts": {}, "unknown": 1}',
        b'{"name": "a", "counts": {}, "format_version": 2}',
        b'{"name": "a", "counts": {}, "format_version": ' + b"9" * 5000 + b"}",
        b'{"name": "\\ud800", "counts": {}}',
        b'{"name": "a", "counts": ' + b'{"a":' * 100_000,
        *(f'{{"name": "{name}", "counts": {{}}}}'.encode() for name in ("", ".", "..", "../a", "/a", "a\\nb", ".a")),
    ],
    ids=lambda content: content[:40],
)
def test_unusable_content_is_one_line(content):
    with pytest.raises(UserError, match=r"^file\.json: ") as caught:
        parse_record(Example, content, "file.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes(content):
    with pytest.raises(UserError):
        parse_record(Example, content, "file.json")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json"):
        read_record(Example, tmp_path / "absent.json")
