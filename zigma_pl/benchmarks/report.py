"""The result of a benchmark as a table, a JSON file and a chart."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigma_pl.benchmarks.timing import GIGABYTE, Measurement, Spread
from zigma_pl.core.errors import UserError
from zigma_pl.core.machine import Machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT_OF_MEMORY = "out of memory"
NOTHING = "-"
PLUS_MINUS = " ±"


@dataclass
class BenchmarkResult:
    """The result of one benchmark; rows and records are added while it runs.

    Args:
        subject: name of the benchmark, such as scan, forward or train.
        machine: date, device, versions, commit.
        notes: what was timed and how, one sentence each.
        columns: column headings of the table.
        plot: creates the chart.
        rows: rows of the table.
        records: values of the table and more, for the JSON file.
    """

    subject: str
    machine: Machine
    notes: list[str]
    columns: tuple[str, ...]
    plot: Callable[["BenchmarkResult"], "Figure"]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def table(self) -> str:
        """Return header, notes and table as text."""
        lines = [", ".join(f"{key} {value}" for key, value in self.machine.items()), *self.notes, ""]
        return "\n".join([*lines, *_aligned([self.columns, *self.rows])])

    def write_json(self, path: Path, complete: bool) -> None:
        """Write the JSON file; `complete` is False while the benchmark is running."""
        content = {
            "subject": self.subject,
            "complete": complete,
            "machine": self.machine,
            "notes": self.notes,
            "records": self.records,
        }
        _write(path, "--json", lambda: path.write_text(json.dumps(content, indent=2) + "\n"))

    def write_plot(self, path: Path) -> None:
        """Write the chart, in the format given by the file name's suffix."""
        figure = self.plot(self)
        _write(path, "--plot", lambda: figure.savefig(path))


def _write(path: Path, option: str, write: Callable[[], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror}): choose another path") from error


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows with aligned columns: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(_is_figure(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    pad = [str.rjust if figures else str.ljust for figures in right]
    return ["  ".join(pad[i](cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]


def _is_figure(cell: str) -> bool:
    figure = cell.partition(PLUS_MINUS)[0]
    return cell in (NOTHING, OUT_OF_MEMORY) or figure.replace(".", "", 1).rstrip(" %").isdecimal()


# ------------------------------------------------------------------------------------------------------------ cells
def measured(measurement: Measurement, num_items: int | None = None) -> dict[str, Any]:
    """Return a measurement for the JSON file, with items per second if a call processes num_items items."""
    record: dict[str, Any] = {"out_of_memory": measurement.out_of_memory, **asdict(measurement)}
    if num_items is not None:
        record["per_second"] = per_second(measurement, num_items)
    return record


def per_second(measurement: Measurement, num_items: int) -> float | None:
    """Return the median items per second at num_items per call; None if out of memory."""
    return None if measurement.seconds is None else num_items / measurement.seconds.median


def figure_cell(value: float | None, digits: int = 3) -> str:
    """Format a number with this many significant digits, without exponent; a dash for None."""
    if value is None:
        return NOTHING
    decimals = max(0, digits - len(str(int(abs(value)))) + (abs(value) < 1))
    return f"{value:.{decimals}f}"


def time_cell(measurement: Measurement) -> str:
    """Format the median in milliseconds, or "out of memory"."""
    return OUT_OF_MEMORY if measurement.seconds is None else figure_cell(1000 * measurement.seconds.median)


def memory_cell(measurement: Measurement) -> str:
    """Format the peak memory in GB (1e9 bytes), or a dash if not measured."""
    peak = measurement.peak_memory_bytes
    return NOTHING if peak is None else figure_cell(peak / GIGABYTE)


def ratio(value: float | None, other: float | None) -> float | None:
    """Return value / other, None if one of them is None."""
    return None if value is None or other is None else value / other


def ratio_cell(spread: Spread | None) -> str:
    """Format the median of ratios and half their interquartile range; a dash for None."""
    if spread is None:
        return NOTHING
    return f"{spread.median:.3f}{PLUS_MINUS}{(spread.upper_quartile - spread.lower_quartile) / 2:.3f}"


def percent_cell(fraction: float | None) -> str:
    """Format a fraction in percent; a dash for None."""
    return NOTHING if fraction is None else f"{100 * fraction:.0f} %"
