"""Prevents torchmetrics, which Lightning imports, from importing transformers: a third of Lightning's time.

Without transformers, torchmetrics has neither BERTScore nor InfoLM. Whoever needs them imports torchmetrics before
zigma_pl.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE, _FLAG = "torchmetrics.utilities.imports", "_TRANSFORMERS_GREATER_EQUAL_4_4"  # the flag of these two metrics


class _HidesTransformers(MetaPathFinder):
    """Finds the module with the flag as others do, and resets the flag after the module has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _reset_flag_after(spec.loader)
        return spec


def _reset_flag_after(loader: object) -> None:
    execute = loader.exec_module  # type: ignore[attr-defined]

    def exec_module(module: ModuleType) -> None:
        execute(module)
        setattr(module, _FLAG, False)

    loader.exec_module = exec_module  # type: ignore[attr-defined]


def skip_text_metrics() -> None:
    """Leave out BERTScore and InfoLM of torchmetrics, unless it has been imported before."""
    if not any(isinstance(finder, _HidesTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HidesTransformers())
