"""Which rows there are, and which configuration files make a row at a scale."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import check_name

_TABLE = re.compile(r"(table|figure)\w+?_")


@dataclass(frozen=True)
class Row:
    """One file of experiments/, by its stem: `table1_sweep` is of table 1; `digits` is of none."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the row, by which logs and records are called too."""
        return self.path.stem

    @property
    def prefix(self) -> str | None:
        """Such as "table1", None for a row of no table."""
        match = _TABLE.match(self.name)
        return None if match is None else match[0].removesuffix("_")


def find_rows(folder: Path, table: str | None = None, patterns: Sequence[str] = ("*",)) -> list[Row]:
    """Return the rows of a folder in the order of their names, numbers in them by value.

    Args:
        folder: which holds a YAML file for each row.
        table: number of a table, such as "1" or "1x"; None for all rows.
        patterns: names as the shell matches them; a row has to match one.

    Raises:
        UserError: there is no such row, or a file's name cannot be that of a record.
    """
    rows = [Row(path) for path in sorted(folder.glob("*.yaml"), key=_natural_order)]
    for row in rows:
        check_name(row.name, str(row.path))
    of_table = [row for row in rows if table is None or row.prefix == f"table{table}"]
    if table is not None and not of_table:
        tables = sorted({row.prefix.removeprefix("table") for row in rows if row.prefix})
        raise UserError(f"--table {table}: {folder} holds no table{table}_*.yaml; tables are {', '.join(tables)}")
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in of_table):
            names = ", ".join(row.name for row in of_table)
            raise UserError(f"--rows {pattern}: no row is called so; rows are {names}")
    return [row for row in of_table if any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def overlay_of(row: Row, scale: str, scales: Path) -> Path | None:
    """Return the file that is laid over a row at a scale, None where the scale is not for this row.

    It is the first there is of `<scale>/<row>.yaml`, `<scale>/<table>.yaml` and, for rows of tables, `<scale>.yaml` in
    the folder `scales`. So a row of no table runs at the scales that have a file of its own.
    """
    candidates = [scales / scale / f"{row.name}.yaml"]
    if row.prefix is not None:
        candidates += [scales / scale / f"{row.prefix}.yaml", scales / f"{scale}.yaml"]
    return next((path for path in candidates if path.is_file()), None)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
