"""A scored run of the digits gives the record that it gave before the metrics became `torchmetrics.Metric`s.

The samples are whole numbers from an integer generator, so that no other change of the network can move the scores.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from zigma_pl.training.module import GenerativeModule, Samples

EXPECTED = {
    "fid_lite": (157.98419171970454, None),
    "kid_lite": (-11274707036.170155, 3332426610.3638787),
    "precision_lite": (0.975, None),
    "recall_lite": (0.8659217877094972, None),
}


@pytest.fixture
def fixed_samples(monkeypatch):
    """Digits that are not in the test split with noise, as what the module samples."""
    digits = load_digits().images[:100]

    def sample(self, batch, guidance=None):
        ids = batch.sample_ids.tolist()
        noise = [np.random.Generator(np.random.PCG64(sample_id)).integers(-30, 31, (8, 8)) for sample_id in ids]
        pictures = (digits[ids].astype(np.int64) * 15 + np.stack(noise)).clip(0, 255)
        return Samples(torch.from_numpy(pictures).float()[:, None] / 127.5 - 1, batch.sample_ids, 2)

    monkeypatch.setattr(GenerativeModule, "sample", sample)


def test_scores_of_the_digits_are_those_of_the_older_code(score, fixed_samples):
    record = score(num_samples=40, kid_subset_size=7, kid_num_subsets=5)
    for name, (value, std) in EXPECTED.items():
        assert record.scores[name].value == pytest.approx(value, rel=1e-10), name
        assert record.scores[name].std == (None if std is None else pytest.approx(std, rel=1e-10)), name
