import json
import sys
from pathlib import Path

import pytest
import torch

from zigma_pl.cli.commands import ablations
from zigma_pl.suite.runs import plan

EXPERIMENT = "trainer: {max_steps: 2}\ncheckpoint: {every_n_train_steps: 1}\ndata: {class_path: zigma_pl.data.Digits}\n"


class Fakes:
    """Experiments in an empty folder, with fake training and scoring."""

    def __init__(self):
        self.behave()
        for index, experiment in enumerate(("table1_a", "table1_b", "table1x_a", "toy")):
            self.write(f"experiments/{experiment}.yaml", f"{EXPERIMENT}preview: {{num_samples: {index}}}\n")
        self.write("scales/smoke.yaml", "scorer: {num_samples: 16, metrics: [fid_lite]}\n")
        torch.save({"global_step": 1}, "middle.pt")
        torch.save({"global_step": 2}, "end.pt")

    def write(self, name, text):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    def behave(self, **experiments):
        self.write("behaviour.json", json.dumps(experiments))

    def run(self, *options):
        return ablations.main(["--experiments=experiments", "--jobs=1", "--no_report", *options])

    def calls(self):
        """Return the calls since the last call of this method."""
        path = Path("calls.txt")
        lines = [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def fakes(in_tmp, monkeypatch):
    fakes = Fakes()
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, str(Path(__file__).with_name("fake_program.py"))))
    real = ablations.shipped_file
    monkeypatch.setattr(
        ablations,
        "shipped_file",
        lambda name: Path("scales/smoke.yaml") if name.startswith("configs/scale") else real(name),
    )
    return fakes
