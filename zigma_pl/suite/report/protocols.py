"""How numbers were made: the entries of records as text, those that all records share apart from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zigma_pl.suite.report.results import RecordFile

Parts = dict[str, dict[str, str]]  # text by name of the entry, by heading


@dataclass(frozen=True)
class Protocols:
    """Entries of the records of a view.

    shared: those that are equal in all records; empty for a single record.
    own: the others, one for each record.
    """

    shared: Parts
    own: tuple[Parts, ...]


def protocols(results: Sequence[RecordFile]) -> Protocols:
    """Return the protocol, training and machine of records as text."""
    each = [_parts(result) for result in results]
    if len(each) < 2:
        return Protocols({}, tuple(each))
    first, *others = each
    shared = {
        heading: {
            name: text
            for name, text in entries.items()
            if all(parts.get(heading, {}).get(name) == text for parts in others)
        }
        for heading, entries in first.items()
    }
    return Protocols(_without_empty(shared), tuple(_without(parts, shared) for parts in each))


def _without(parts: Parts, shared: Parts) -> Parts:
    own = {
        heading: {name: text for name, text in entries.items() if name not in shared.get(heading, {})}
        for heading, entries in parts.items()
    }
    return _without_empty(own)


def _without_empty(parts: Parts) -> Parts:
    return {heading: entries for heading, entries in parts.items() if entries}


def _parts(result: RecordFile) -> Parts:
    record = result.record
    parts = {"Protocol": record.protocol, "Training": record.training, "Machine": record.machine}
    return _without_empty({heading: _flat(dict(values)) for heading, values in parts.items()})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values by their path, as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}, ")
        elif isinstance(value, list):
            flat[key] = ", ".join(map(str, value))
        else:
            flat[key] = "none" if value is None else str(value)
    return flat
