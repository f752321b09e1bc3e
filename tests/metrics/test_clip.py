import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.clip_score import ClipScore
from zigma_pl.evaluation.metrics.extractors import build_extractor
from zigma_pl.evaluation.metrics.extractors.clip import CLIP_MEAN, CLIP_STD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both towers of CLIP, patch 14 at 224 px, shallow and narrow, with random weights; words are single letters."""
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words)},
        vision_config={**tower, "image_size": 224, "patch_size": 14},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(path)
    return path


@pytest.fixture
def pictures():
    return torch.randint(256, (3, 3, 90, 131), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_preprocessing_is_that_of_transformers(folder, pictures):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    expected = np.stack(CLIPImageProcessorPil()(images)["pixel_values"])
    preprocessed = build_extractor("clip_image", folder).preprocess(pictures)
    torch.testing.assert_close(preprocessed, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_preprocessing_cuts_the_centre_by_hand(folder):
    # 448 x 672 halves to 224 x 336, of which columns 56 to 279 stay: the left quarter is white up to column 168 / 2.
    wide = torch.zeros(1, 3, 448, 672, dtype=torch.uint8)
    wide[..., :168] = 255
    values = build_extractor("clip_image", folder).preprocess(wide)
    white, black = ((torch.tensor([value]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD) for value in (1, 0))
    torch.testing.assert_close(values[0, :, 100, 84 - 56 - 3], white)
    torch.testing.assert_close(values[0, :, 100, 84 - 56 + 3], black)


def test_features_are_the_projections(folder, pictures):
    from transformers import CLIPModel

    extractor = build_extractor("clip_image", folder)
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).get_image_features(extractor.preprocess(pictures)).pooler_output
    features = extractor(pictures)
    assert features.shape == (3, extractor.dim) == (3, 24)
    torch.testing.assert_close(features, expected)
    assert extractor.comparable is False


def test_score_is_the_scaled_cosine_and_never_negative(folder, pictures):
    from transformers import CLIPModel

    score, captions = ClipScore(folder), ["abc", "xyz", "q"]
    scores = score.scores(pictures, captions)
    token_ids = torch.tensor([[52, 0, 1, 28, 53], [52, 23, 24, 51, 53], [52, 42, 53, 53, 53]])  # end pads
    with torch.no_grad():
        captioned = CLIPModel.from_pretrained(folder).get_text_features(token_ids).pooler_output
    cosines = F.cosine_similarity(build_extractor("clip_image", folder)(pictures), captioned)
    torch.testing.assert_close(scores, 100 * cosines.clamp(min=0), rtol=1e-4, atol=1e-4)
    assert (scores >= 0).all()
    score.pictures.network.visual_projection.weight.data.neg_()
    torch.testing.assert_close(score.scores(pictures, captions), 100 * (-cosines).clamp(min=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score.scores(pictures[1:2], captions[1:2])[0], 100 * (-cosines[1]).clamp(min=0))
    assert score.fingerprint()["scale"] == 100
    with pytest.raises(UserError, match="3 images but 1 captions"):
        score.scores(pictures, ["a"])


def test_a_folder_without_tokenizer_is_named(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="no tokenizer"):
        ClipScore(tmp_path)


def test_the_metric_is_the_mean_over_all_samples_each_once(folder, pictures):
    score, captions = ClipScore(folder), ["abc", "xyz", "q"]
    expected = score.scores(pictures, captions).double().mean()
    assert float(score(pictures[:2], captions[:2], torch.tensor([0, 1]))) == pytest.approx(
        float(score.scores(pictures[:2], captions[:2]).double().mean()), rel=1e-6
    )
    score.update(pictures[2:], captions[2:], torch.tensor([2]))
    score.update(pictures[:0], [], torch.tensor([], dtype=torch.int64))
    assert float(score.compute()) == pytest.approx(float(expected), rel=1e-6)
    score.update(pictures[:1], captions[:1], torch.tensor([2]))
    with pytest.raises(UserError, match="sample 2"):
        score.compute()
    score.reset()
    assert not score.state_dict()
    with pytest.raises(UserError, match="no samples"):
        score.compute()


def test_weights_that_give_no_number_are_an_error_and_no_score(folder, pictures):
    score = ClipScore(folder)
    score.pictures.network.visual_projection.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        score.update(pictures, ["a", "b", "c"])
