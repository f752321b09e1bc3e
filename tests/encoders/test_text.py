import pickle
import re
import subprocess
import sys

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.encoders import HashingTextEncoder, build_text_encoder
from zigma_pl.encoders import text as text_module
from zigma_pl.encoders.text import sinusoidal_positions, word_vector

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def plainly_encoded(captions, dim, max_tokens):
    """Encode captions as described in the docstring, word by word."""
    features, mask = torch.zeros(len(captions), max_tokens, dim), torch.zeros(len(captions), max_tokens).bool()
    for row, caption in enumerate(captions):
        for place, word in enumerate(re.findall(r"\w+", caption.lower())[:max_tokens] or ["<empty>"]):
            position = sinusoidal_positions(max_tokens, dim)[place]
            features[row, place] = dim**0.5 * word_vector(word, dim) + position
            mask[row, place] = True
    return features, mask


def assert_encodes_as_defined(encoder, captions, device="cpu"):
    features, mask = encoder(captions, device)
    assert features.device.type == mask.device.type == device
    plain, plain_mask = plainly_encoded(captions, encoder.dim, encoder.max_tokens)
    assert torch.equal(features.cpu().view(torch.int32), plain.view(torch.int32))  # the bits: -0 is not 0
    assert torch.equal(mask.cpu(), plain_mask)


def test_shapes_mask_and_padding():
    features, mask = HashingTextEncoder(dim=48, max_tokens=6)(
        ["A smiling person.", "one two three four five six seven"]
    )
    assert (features.shape, features.dtype) == ((2, 6, 48), torch.float32)
    assert (mask.shape, mask.dtype) == ((2, 6), torch.bool)
    assert mask.sum(1).tolist() == [3, 6]
    assert mask[0].tolist() == [True] * 3 + [False] * 3
    assert not features[0, 3:].any()


@pytest.mark.parametrize("caption", ["", "   ", "!?, ..."])
def test_empty_caption_is_one_token(caption):
    encoder = HashingTextEncoder(dim=16, max_tokens=4)
    features, mask = encoder([caption, "<empty>", "hat"])
    assert mask[0].tolist() == [True, False, False, False]
    assert features[0, 0].norm() > 1
    assert not torch.equal(features[0], features[1])  # no real caption can produce that token
    assert not torch.equal(features[0], features[2])


def test_case_and_punctuation_do_not_matter_but_order_does():
    features, _ = HashingTextEncoder()(["Red hair!", "red, HAIR", "hair red"])
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_feature_is_scaled_word_plus_position():
    features, _ = HashingTextEncoder(dim=6, max_tokens=3)(["hat hat"])
    angles = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)], dtype=torch.float64)
    position = torch.cat([angles.sin(), angles.cos()])
    word = word_vector("hat", 6).double() * 6**0.5
    torch.testing.assert_close(features[0, 1].double(), word + position, rtol=0, atol=1e-6)
    first = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(features[0, 0].double(), word + first, rtol=0, atol=1e-6)


def test_words_are_unit_vectors_and_nearly_orthogonal():
    words = torch.stack([word_vector(f"word{i}", 256) for i in range(50)])
    products = words @ words.T
    torch.testing.assert_close(products.diagonal(), torch.ones(50))
    assert (products - torch.eye(50)).abs().max() < 0.35


def test_features_do_not_depend_on_the_rest_of_the_batch():
    encoder = HashingTextEncoder()
    captions = ["short", "a much longer caption with many more words in it", ""]
    together, mask = encoder(captions)
    for row, caption in enumerate(captions):
        alone, alone_mask = encoder([caption])
        assert torch.equal(alone[0], together[row])
        assert torch.equal(alone_mask[0], mask[row])


def test_features_are_the_same_in_another_process():
    code = (
        "from zigma_pl.encoders.text import HashingTextEncoder;"
        "print(HashingTextEncoder(dim=8)(['red hair'])[0].double().sum().item())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) == HashingTextEncoder(dim=8)(["red hair"])[0].double().sum().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [7, 48])
def test_bits_are_those_of_the_definition_while_the_table_grows(dim, device):
    encoder = HashingTextEncoder(dim, max_tokens=5)
    for first in range(0, 3000, 500):  # the table grows at 1,024 and 2,048 words; half of the words are known
        words = [f"word{number}" for number in range(first // 2, first + 500)]
        captions = [" ".join(words[start : start + 1 + start % 7]) for start in range(0, len(words), 5)]
        assert_encodes_as_defined(encoder, [*captions, "", "hat hat HAT", captions[0]], device)
    assert encoder([], device)[0].shape == (0, 5, dim)


@pytest.mark.parametrize("device", DEVICES)
def test_words_of_evaluation_and_training_share_a_table(device):
    encoder = HashingTextEncoder(dim=6, max_tokens=3)
    with torch.inference_mode():
        assert_encodes_as_defined(encoder, ["red hair"], device)
    assert_encodes_as_defined(encoder, ["red hat", "blue hair"], device)
    with torch.inference_mode():
        assert_encodes_as_defined(encoder, ["green hat"], device)


def test_forgets_all_words_when_they_are_too_many(monkeypatch):
    monkeypatch.setattr(text_module, "_WORDS_KEPT", 10)
    encoder = HashingTextEncoder(dim=6, max_tokens=3)
    for start in range(0, 60, 3):
        assert_encodes_as_defined(encoder, [f"{start} {start + 1} {start + 2}", "always the same"])
        assert len(encoder._words) <= 10 + 6


def test_pickles_without_the_words():
    encoder = HashingTextEncoder(dim=64, max_tokens=5)
    encoder(["red hair and a hat"])
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 200
    assert_encodes_as_defined(pickle.loads(pickled), ["a red hat", ""])


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="hashing"):
        build_text_encoder("clipp")
    with pytest.raises(UserError, match="max_tokens"):
        HashingTextEncoder(8, 0)
    assert build_text_encoder("hashing", dim=8, max_tokens=4).dim == 8
