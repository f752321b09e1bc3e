"""Feature extractors of one's own: when they load, and which kept features of real images they are compared with."""

import sys
from importlib import import_module

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.evaluation.scoring import Scoring, ScoringOptions
from zigma_pl.metrics import FeatureExtractor, build_extractor

OWN = """
import torch
from zigma_pl import UserError
from zigma_pl.metrics import FeatureExtractor

class Means(FeatureExtractor):
    dim = 2

    def __init__(self, factor: float = 1.0, missing: bool = False):
        self.factor, self.missing = factor, missing

    def load(self):
        if self.missing:
            raise UserError("weights of Means are missing")
        return torch.nn.BatchNorm1d(2, dtype=torch.float64)

    def features(self, images):
        return torch.stack([images.float().mean((1, 2, 3)), images.float().amax((1, 2, 3))], 1) * self.factor
"""


@pytest.fixture
def means(in_tmp, monkeypatch):
    """Return the class in a module that was just written; more text can be put behind it."""
    monkeypatch.syspath_prepend(in_tmp)

    def written(more=""):
        (in_tmp / "own_means.py").write_text(OWN + more)
        sys.modules.pop("own_means", None)
        return import_module("own_means").Means

    yield written
    sys.modules.pop("own_means", None)


def references(extractor):
    options = ScoringOptions(
        num_samples=8, metrics=["fid_mine"], extractors={"mine": extractor}, reference_folder="reference"
    )
    return Scoring(Digits(), options).load_references(torch.device("cpu"))


def test_an_edited_or_other_extractor_gets_features_of_its_own(means, in_tmp):
    (kept,) = references(means()()).values()
    (same,) = references(means()()).values()
    assert same.sha256 == kept.sha256
    (doubled,) = references(means()(factor=2.0)).values()
    torch.testing.assert_close(doubled.statistics.mean, 2 * kept.statistics.mean)
    edited = means("    def features(self, images):\n        return torch.ones(len(images), 2)\n")
    (ones,) = references(edited()).values()
    assert ones.statistics.mean.tolist() == [1.0, 1.0]
    assert len(list((in_tmp / "reference").glob("*.json"))) == 3


def test_weights_are_loaded_when_scoring_begins_and_frozen_in_float32(means):
    extractor = means()(missing=True)
    with pytest.raises(UserError, match="weights of Means are missing"):
        references(extractor)
    network = means()().network
    assert {(value.dtype, value.requires_grad) for value in network.parameters()} == {(torch.float32, False)}
    assert not network.training


def test_features_of_another_shape_or_type_are_refused(means):
    class Wrong(means()):
        dim = 3

    with pytest.raises(UserError, match=r"Wrong\.features"):
        Wrong()(torch.full((2, 3, 4, 4), 9, dtype=torch.uint8))


def test_a_class_that_cannot_be_imported_cannot_be_recorded():
    class Local(FeatureExtractor):
        dim = 1

        def features(self, images):
            return images.float().mean((1, 2, 3))[:, None]

    with pytest.raises(UserError, match="cannot be imported"):
        references(Local())


def test_the_name_of_a_listed_extractor_is_taken():
    with pytest.raises(UserError, match="lite"):
        ScoringOptions(extractors={"lite": build_extractor("lite")})
