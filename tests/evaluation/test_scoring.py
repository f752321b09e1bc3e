"""Scoring without a Trainer: the numbers of `test`, and the example of docs/protocol.md."""

import json
import re
import textwrap

import pytest
import torch
from evaluation.tiny_run import build, chunks

from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.evaluation.scoring import Scoring, ScoringOptions
from zigma_pl.interop.folder import save_pretrained


def loaded(folder):
    """Return the module that `test` scores."""
    module = build().eval()
    module.load_state_dict(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    return module


def test_a_loop_of_ones_own_gets_the_numbers_and_samples_of_test(score, trained):
    record = score()
    options = ScoringOptions(num_samples=24, kid_subset_size=5, samples_dir="own", reference_folder="reference")
    counted = []
    scored = Scoring(Digits(), options).score(
        loaded(trained["digits"]),
        {"weights": "own"},
        "row",
        on_sampled=lambda done, total: counted.append((done, total)),
    )
    losses = {"validation_loss", "velocity_loss"}  # of the test split, without samples
    assert scored.scores == {name: kept for name, kept in record.scores.items() if name not in losses}
    assert chunks("own") == chunks("samples")
    assert counted == [(16, 32), (32, 32)]
    protocol = json.loads(json.dumps(scored.protocol))  # tuples become lists
    assert protocol == {name: record.protocol[name] for name in protocol} | {"samples": str(scored.store.folder)}


def test_the_example_of_the_documentation(trained, in_tmp, fake_features, repository, capsys, monkeypatch):
    save_pretrained(loaded(trained["digits"]), "exported")
    (example,) = re.findall(r"```python\n  (.*?)  ```", (repository / "docs" / "protocol.md").read_text(), re.DOTALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    found = {}
    exec(textwrap.dedent("  " + example), found)
    assert list(found["scored"].scores) == ["fid_lite", "kid_lite", "precision_lite", "recall_lite"]
    assert "2 samples/digits/" in capsys.readouterr().out
    found["score"](found["model"], Digits(), ScoringOptions(num_samples=40, metrics=[]), name="digits")
    assert len(chunks("samples")) == 13  # those that were there already


@pytest.mark.parametrize("options", [{"num_samples": -1}, {"metrics": ["fidd"]}, {"kid_subset_size": 1}])
def test_options_out_of_range_are_refused_without_a_trainer(options):
    with pytest.raises(UserError):
        ScoringOptions(**options)
