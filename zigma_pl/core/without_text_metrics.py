"""Prevents torchmetrics, which Lightning imports, from importing transformers: a third of Lightning's time."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ASKED_FOR_BY_TEXT_METRICS = "transformers>=4.4.0"


class _BeforeTorchmetrics(MetaPathFinder):
    """Finds no module; at the first import of torchmetrics, it hides transformers and is removed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchmetrics":
            sys.meta_path.remove(self)
            _hide_transformers()
        return None


def _hide_transformers() -> None:
    from lightning_utilities.core.imports import RequirementCache

    check = RequirementCache._check_available

    def check_available(self: RequirementCache) -> None:
        if self.requirement == _ASKED_FOR_BY_TEXT_METRICS:
            self.available, self.message = False, "BERTScore and InfoLM: import torchmetrics before zigma_pl"
        check(self)

    RequirementCache._check_available = check_available  # type: ignore[method-assign]


def skip_text_metrics() -> None:
    """Leave out BERTScore and InfoLM of torchmetrics, unless it has been imported before."""
    if "torchmetrics" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchmetrics())
