import pytest
import torch
from evaluation.fake_extractor import FakeExtractor

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.features import FeatureSet
from zigma_pl.evaluation.metrics.extractors import EXTRACTORS
from zigma_pl.evaluation.metrics.frechet import frechet_distance
from zigma_pl.evaluation.metrics.kernel_distance import kernel_distance
from zigma_pl.evaluation.metrics.precision_recall import precision_recall
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics
from zigma_pl.evaluation.reference import Reference
from zigma_pl.evaluation.scores import (
    SCORES,
    Features,
    ScoreOptions,
    by_features,
    check_counts,
    choose_scores,
    compute,
    known_scores,
    scores_on,
)

OPTIONS = ScoreOptions(kid_num_subsets=3, kid_subset_size=5, num_neighbours=2)


def test_every_score_is_on_features_that_exist_and_suit_them():
    for name, kind in SCORES.items():
        if kind.features.extractor == "clip_score":
            continue
        extractor = EXTRACTORS[kind.features.extractor]
        assert (kind.features.of == "clips") == (extractor.takes == "clips"), name
        assert name.endswith("_lite") == (extractor.name == "lite"), name


def test_default_scores_need_no_download_and_suit_the_data():
    of_pictures = ["fid_lite", "kid_lite", "precision_lite", "recall_lite"]
    for of_clips, names in ((False, of_pictures), (True, ["frame_fid_lite"])):
        chosen = choose_scores(None, SCORES, of_clips=of_clips, has_captions=True)
        assert list(chosen) == names
        assert choose_scores(names, SCORES, of_clips=of_clips, has_captions=True) == chosen


class OfClips(FakeExtractor):
    takes = "clips"


def test_scores_on_extractors_of_ones_own():
    known = known_scores({"mine": FakeExtractor(), "moving": OfClips()})
    names = ["fid_mine", "kid_mine", "precision_mine", "recall_mine"]
    assert list(choose_scores(None, known, of_clips=False, has_captions=False))[4:] == names
    assert list(choose_scores(None, known, of_clips=True, has_captions=False))[1:] == ["frame_fid_mine", "fvd_moving"]
    assert choose_scores(["kid_mine"], known, of_clips=False, has_captions=False)["kid_mine"].distance == "kernel"
    with pytest.raises(UserError, match="fvd_moving does not apply to images"):
        choose_scores(["fvd_moving"], known, of_clips=False, has_captions=False)


@pytest.mark.parametrize("name", ["lite", "clip_score", "a.b", "../up", ""])
def test_names_that_an_extractor_cannot_have(name):
    with pytest.raises(UserError, match="is not a valid name"):
        known_scores({name: FakeExtractor()})


@pytest.mark.parametrize(
    ("name", "of_clips", "message"),
    [
        ("fidd", False, "unknown score 'fidd'"),
        ("fvd", False, "fvd does not apply to images"),
        ("fid", True, "fid does not apply to clips"),
        ("clip_score", False, "without captions"),
    ],
)
def test_scores_that_do_not_suit_the_data_are_refused(name, of_clips, message):
    with pytest.raises(UserError, match=message):
        choose_scores([name], SCORES, of_clips=of_clips, has_captions=False)


@pytest.mark.parametrize(
    ("name", "num_fake", "message"),
    [
        ("fid", 1, "at least 2"),
        ("kid_lite", 4, "scorer.kid_subset_size to at most 4"),
        ("recall", 2, "more than 2 samples"),
    ],
)
def test_too_few_samples_are_found_before_sampling(name, num_fake, message):
    with pytest.raises(UserError, match=message):
        check_counts({name: SCORES[name]}, OPTIONS, num_real=9, num_fake=num_fake)
    check_counts({name: SCORES[name]}, OPTIONS, num_real=9, num_fake=9)


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_scores_are_those_of_the_metrics(device):
    generator = torch.Generator().manual_seed(0)
    real, fake = (shift + torch.randn(9, 3, generator=generator) for shift in (0.0, 0.5))
    statistics = [FeatureStatistics(3).update(features) for features in (real, fake)]
    reference = Reference(statistics[0], real, num_real=9, sha256="")
    names = ["fid_lite", "kid_lite", "precision_lite", "recall_lite"]
    wanted = {name: SCORES[name] for name in names}
    assert by_features(wanted) == {Features("lite"): wanted}
    assert wanted.items() <= scores_on("lite").items()
    scores = compute(wanted, reference, FeatureSet(statistics[1], fake), OPTIONS, comparable=False, device=device)
    assert list(scores) == names
    assert scores["fid_lite"].value == frechet_distance(*statistics)
    assert (scores["kid_lite"].value, scores["kid_lite"].std) == pytest.approx(kernel_distance(real, fake, 3, 5))
    manifold = precision_recall(real, fake, 2)
    assert (scores["precision_lite"].value, scores["recall_lite"].value) == manifold
    assert not any(score.comparable for score in scores.values())
