"""Rows of experiments/: what the comment at the top of each YAML file says of it.

The form of that comment (`HEADER_FORM`) is part of the generated experiments/README.md.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from zigma_pl.errors import UserError
from zigma_pl.report.scores import PUBLISHED_NAMES

HEADER_FORM = """\
# Paper table 1, scan schemes on MultiModal-CelebA-HQ 256, row zigzag-8.
# Published: FID 45.5, FDD 26.4, KID 0.011 (5,000 samples)
# Published at 512 pixels: FID 34.9, FDD 29.5, KID 0.023
# Run: python -m zigma_pl fit --config experiments/table1_zigzag8.yaml
# Without the data: add --config configs/scale/smoke.yaml (a drawn stand-in, a tiny model, a minute)
# GPU hours: not measured
# Left open by the paper: batch size (here 32 a process) and steps of this table (here 400,000, as in the released
#   configurations).
# Note: whatever else there is to say.
model:
"""
_OF_TABLE = re.compile(r"(?P<kind>Paper|Our) (?P<table>(?:table|figure) \w+), (?P<title>.+), row (?P<row>.+)\.")
_NO_TABLE = re.compile(r"No table: (?P<title>.+)\.")
_FIELD = re.compile(r"(?P<key>[A-Z][^:]*?)(?: at (?P<setting>[^:]+))?: *(?P<value>.+)")
_PUBLISHED = re.compile(r"(?P<numbers>.+?)(?: \((?P<protocol>.+)\))?")
_KEYS = ("Published", "Run", "Without the data", "GPU hours", "Left open by the paper", "Note")
NOTHING = "nothing"  # is published, or left open


@dataclass(frozen=True)
class Row:
    """One YAML file of experiments/, by its header.

    file: the file; `name`, its stem, is what result records call the row.
    table: "table 1", "figure 4", or None for a row of no table.
    title: what the table compares, or what a row of no table is.
    label: the row's name in its table.
    in_paper: whether the table is one of the paper's.
    published: score name -> number as the paper prints it.
    protocol: how the published numbers were measured, where it says so.
    published_elsewhere: the same at another setting, such as "512 pixels".
    command: what trains the row.
    gpu_hours, left_open: as written.
    notes: further remarks.
    """

    file: Path
    table: str | None
    title: str
    label: str
    in_paper: bool
    command: str
    gpu_hours: str
    left_open: str
    published: dict[str, str] = field(default_factory=dict)
    protocol: str | None = None
    published_elsewhere: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Stem of the file's name."""
        return self.file.stem


def load_rows(folder: Path) -> list[Row]:
    """Read the headers of all YAML files in a folder: the paper's tables first, each with its rows as they are named.

    Raises:
        UserError: a header is not in the form, or two rows give one table different titles; file and line are named.
    """
    files = sorted(folder.glob("*.yaml"), key=lambda file: _natural(file.stem))
    if not files:
        raise UserError(f"{folder}: no .yaml file is there: give the folder of the rows with --experiments")
    rows = [read_row(file) for file in files]
    first_of: dict[str | None, Row] = {}
    for row in rows:
        first = first_of.setdefault(row.table, row)
        if row.table is not None and (row.title, row.in_paper) != (first.title, first.in_paper):
            raise UserError(
                f"{row.file}, line 1: {first.file.name} calls {row.table} '{first.title}', this file '{row.title}': "
                "give all rows of a table the same words before ', row'"
            )
    return sorted(rows, key=_place_of_table)  # stable: files stay in order


def _place_of_table(row: Row) -> tuple[bool, bool, list[tuple[int, str]]]:
    """Tables, then figures, then what is neither."""
    table = row.table or ""
    return row.table is None, table.startswith("figure"), _natural(table)


def by_table(rows: list[Row]) -> dict[str | None, list[Row]]:
    """Return the rows of each table, None for those of no table."""
    tables: dict[str | None, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.table, []).append(row)
    return tables


def read_row(file: Path) -> Row:
    """Read the header of one file; raises UserError naming file and line."""
    (_, first), *others = _statements(file)
    heading = _OF_TABLE.fullmatch(first) or _NO_TABLE.fullmatch(first)
    if heading is None:
        raise UserError(
            f"{file}, line 1: must read '# Paper table 1, TITLE, row NAME.', '# Our table 1x, TITLE, row NAME.' or "
            f"'# No table: WHAT IT IS.', found '{first}'"
        )
    parts = heading.groupdict()
    in_paper = parts.get("kind") == "Paper"
    values, settings, notes = _fields(file, others)
    _check_complete(file, values, in_paper)
    published, protocol = _numbers(file, values.get("Published", NOTHING))
    return Row(
        file=file,
        table=parts.get("table"),
        title=parts["title"],
        label=parts.get("row") or file.stem,
        in_paper=in_paper,
        command=values["Run"],
        gpu_hours=values.get("GPU hours", "not measured"),
        left_open=values.get("Left open by the paper", NOTHING),
        published=published,
        protocol=protocol,
        published_elsewhere={setting: _numbers(file, text)[0] for setting, text in settings.items()},
        notes=notes,
    )


def _statements(file: Path) -> list[tuple[int, str]]:
    """Return number and text of each line of the header, those that go on joined to the one before."""
    statements: list[tuple[int, str]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("#"):
            break
        if line.startswith("#   ") and statements:
            statements[-1] = (statements[-1][0], f"{statements[-1][1]} {line[1:].strip()}")
        else:
            statements.append((number, line[1:].strip()))
    return statements or [(1, "")]


def _fields(file: Path, statements: list[tuple[int, str]]) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """Return the values of the keys, the numbers published at other settings, and the notes."""
    values: dict[str, str] = {}
    settings: dict[str, str] = {}
    notes: list[str] = []
    for number, line in statements:
        match = _FIELD.fullmatch(line)
        if match is None or match["key"] not in _KEYS or (match["setting"] and match["key"] != "Published"):
            keys = ", ".join(f"'# {key}:'" for key in _KEYS)
            raise UserError(
                f"{file}, line {number}: must begin with {keys} or '# Published at SETTING:', or be indented by three "
                f"spaces if it goes on from the line before; found '{line}'"
            )
        key, place = match["setting"] or match["key"], settings if match["setting"] else values
        if key == "Note":
            notes.append(match["value"])
        elif key in place:
            raise UserError(f"{file}, line {number}: '{line.partition(':')[0]}:' is there twice; join the two")
        else:
            place[key] = match["value"]
    return values, settings, tuple(notes)


def _numbers(file: Path, text: str) -> tuple[dict[str, str], str | None]:
    """Return score name -> number as written, and what stands in brackets behind all of them."""
    if text == NOTHING:
        return {}, None
    whole = _PUBLISHED.fullmatch(text)
    assert whole is not None
    found: dict[str, str] = {}
    for part in whole["numbers"].split(", "):
        label, _, value = part.rpartition(" ")
        if label not in PUBLISHED_NAMES or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UserError(
                f"{file}: published '{part}' is not a score and its number, such as 'FID 45.5'; scores are "
                f"{', '.join(PUBLISHED_NAMES)}, and where there is none the line is '# Published: {NOTHING}'"
            )
        found[PUBLISHED_NAMES[label]] = value
    return found, whole["protocol"]


def _check_complete(file: Path, values: dict[str, str], in_paper: bool) -> None:
    needed = ["Published", "Run", "GPU hours", "Left open by the paper"] if in_paper else ["Run"]
    missing = [f"'# {key}: ...'" for key in needed if key not in values]
    if missing:
        raise UserError(f"{file}: its header lacks {', '.join(missing)}; experiments/README.md has the form")
    if not in_paper and values.get("Published", NOTHING) != NOTHING:
        raise UserError(f"{file}: published numbers belong to a row of a paper's table, not to one of our own")
    if f"experiments/{file.name}" not in values["Run"]:
        raise UserError(f"{file}: '# Run:' does not name experiments/{file.name}: '{values['Run']}'")


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts zigzag2 before zigzag10, and "table 1" before "table 1x"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]
