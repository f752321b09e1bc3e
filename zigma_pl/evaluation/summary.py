"""The table that `test` prints at the end."""

from pathlib import Path
from typing import Any

from zigma_pl.evaluation.record import ResultRecord

NOT_COMPARABLE = "not comparable with published scores"
LITE = "lite, not comparable with published FID"


def score_table(record: ResultRecord, path: Path) -> str:
    """Return a table of the scores, with the path of the record."""
    lines = [f"\n{record.row}, scale {record.scale}, {_summary(dict(record.protocol))}"]
    for name, score in record.scores.items():
        spread = "" if score.std is None else f" ± {score.std:.2g}"
        remark = "" if score.comparable is not False else (LITE if name.endswith("_lite") else NOT_COMPARABLE)
        lines.append(f"  {name:<16}{f'{score.value:.5g}{spread}':<20}{remark}".rstrip())
    return "\n".join([*lines, f"record: {path}"])


def _summary(protocol: dict[str, Any]) -> str:
    weights = f"{protocol['weights']} weights"
    if "num_fake" not in protocol:
        return f"{weights}, loss only"
    calls = f"{protocol['num_network_calls']:.4g} network calls each"
    real = "" if protocol["num_real"] is None else f", {protocol['num_real']} real samples ({protocol['split']} split)"
    return f"{protocol['num_fake']} samples of the {weights}, {calls}{real}"
