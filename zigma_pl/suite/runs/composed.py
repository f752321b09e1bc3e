"""The merged configs of a run: options, a hash, and differences from an earlier run."""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line

_ABSENT = "absent"


def compose(files: Sequence[Path]) -> dict[str, Any]:
    """Merge YAML files, later ones over earlier ones, as the command line does with `--config`.

    The block `about` is left out, since no number depends on it.

    Raises:
        UserError: a file cannot be read or is no YAML mapping.
    """
    composed: dict[str, Any] = {}
    for path in files:
        try:
            loaded = deepcopy(_parsed(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): correct the path") from error
        except (ValueError, RecursionError, YAMLError, OmegaConfBaseException, TypeError) as error:
            raise UserError(f"{path}: is not a valid config: {one_line(str(error))}") from error
        composed = _merged(composed, loaded)
    return {str(name): value for name, value in composed.items() if name != "about"}


@cache
def _parsed(text: str) -> dict[str, Any]:
    """Parse a YAML mapping; cached, because a plan reads each file several times and parsing takes milliseconds."""
    loaded = OmegaConf.to_container(OmegaConf.load(StringIO(text)))
    if not isinstance(loaded, dict):
        raise TypeError("it is no mapping")
    return loaded  # type: ignore[return-value]


def _merged(below: Any, above: Any) -> Any:
    """Merge mappings; replace anything else, for example one mixer by a list of them."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _merged(below.get(name), value) for name, value in above.items()}


def option(config: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return the option with a dotted name, or `default` if the files do not set it."""
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def without(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the options without those of these dotted names and everything below them."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        below = [other.removeprefix(f"{name}.") for other in names if other.startswith(f"{name}.")]
        rest = without(value, below) if below and isinstance(value, dict) else value
        if name not in names and (rest or not below):  # a group that became empty is removed
            kept[name] = rest
    return kept


def fingerprint(config: dict[str, Any]) -> str:
    """Return a hash of the options, independent of their order and of comments in the files."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a text such as "trainer.max_steps 100 -> 200" for each option that differs."""
    before, after = _flat(old), _flat(new)
    return [
        f"{name} {before.get(name, _ABSENT)} -> {after.get(name, _ABSENT)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
