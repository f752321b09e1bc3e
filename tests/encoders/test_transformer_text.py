import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.text import build_text_encoder
from zigma_pl.encoders.transformer_text import CLIPTextEncoder

CAPTIONS = ["a red ball", "a much longer caption about a small red ball on a wide green field", ""]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's text tower with random weights, and a tokenizer whose words are single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def check_contract(encoder):
    features, mask = encoder(CAPTIONS)
    assert features.shape == (3, encoder.max_tokens, encoder.dim)
    assert features.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.any(dim=1).all()
    assert (features[~mask] == 0).all()
    assert (features[mask].abs().sum(-1) > 0).all()
    assert (mask.int().diff(dim=1) <= 0).all()  # padding comes last
    for row, caption in enumerate(CAPTIONS):
        alone, alone_mask = encoder([caption])
        torch.testing.assert_close(alone[0], features[row], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone_mask[0], mask[row])
    return features, mask


def test_clip_gives_the_hidden_states_of_its_text_tower(clip_folder):
    from transformers import CLIPTextModel

    encoder = build_text_encoder("clip", str(clip_folder))
    assert (encoder.dim, encoder.max_tokens) == (16, 77)
    features, mask = check_contract(encoder)
    assert mask.sum(1).tolist()[2] == 2  # begin and end
    # "abc" by hand: begin, a, b, c that ends a word, end
    token_ids = torch.tensor([[52, 0, 1, 28, 53]])
    expected = CLIPTextModel.from_pretrained(clip_folder)(token_ids).last_hidden_state
    features, mask = encoder(["abc"])
    assert mask.sum() == 5
    torch.testing.assert_close(features[:, :5], expected, rtol=1e-4, atol=1e-5)


def test_minilm_comes_with_its_package_and_knows_meanings():
    encoder = build_text_encoder("minilm")
    assert (encoder.dim, encoder.max_tokens) == (384, 64)
    check_contract(encoder)
    features, mask = encoder(["a picture of a cat", "a photo of a kitten", "quarterly tax declaration"])
    means = torch.nn.functional.normalize(features.sum(1) / mask.sum(1, keepdim=True), dim=-1)
    close, far = means[0] @ means[1], means[0] @ means[2]
    assert close > 0.7 > 0.3 > far


def test_long_captions_are_cut_off(clip_folder):
    encoder = CLIPTextEncoder(clip_folder, max_tokens=8)
    features, mask = encoder(["a" * 50])
    assert features.shape == (1, 8, 16)
    assert mask.all()


def test_fingerprint_follows_weights_and_length(clip_folder, tmp_path):
    from transformers import CLIPTextModel

    other = shutil.copytree(clip_folder, tmp_path / "other")
    same = CLIPTextEncoder(other).fingerprint()
    assert (
        same == CLIPTextEncoder(clip_folder).fingerprint() != CLIPTextEncoder(clip_folder, max_tokens=9).fingerprint()
    )
    network = CLIPTextModel.from_pretrained(other)
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    network.save_pretrained(other)
    assert CLIPTextEncoder(other).fingerprint() != same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "clip"}, "text_encoder_path"),
        ({"name": "clip", "path": "nowhere"}, "nowhere"),
        ({"name": "clip", "dim": 32}, "caption_dim"),
        ({"name": "clip", "max_tokens": 78}, "77"),
        ({"name": "clip", "max_tokens": 0}, "max_tokens"),
        ({"name": "minilm", "dim": 768}, "384"),
        ({"name": "hashing", "path": "somewhere"}, "no weights"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(clip_folder, options, message):
    if "dim" in options or "max_tokens" in options:
        options = {"path": None if options["name"] == "minilm" else str(clip_folder), **options}
    with pytest.raises(UserError, match=message) as error:
        build_text_encoder(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", ["missing", "NaN"])
def test_weights_that_are_missing_or_not_finite_are_not_made_up(clip_folder, tmp_path, spoil):
    """Kind: wrong numbers without a word; transformers initialises missing weights randomly."""
    folder = shutil.copytree(clip_folder, tmp_path / "spoilt")
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("final_layer_norm.bias"))
    if spoil == "missing":
        del weights[name]
    else:
        weights[name][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{spoil}.*final_layer_norm\.bias|final_layer_norm\.bias.*{spoil}") as error:
        CLIPTextEncoder(folder)(["a"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"vocab_size": 10**9},
        {"intermediate_size": 10**9},
        {"max_position_embeddings": 65_536},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": "a"},
        {"bos_token_id": [1]},
        {"num_attention_heads": 0},
        {"hidden_act": "x"},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights_is_refused_before_they_are_read(
    clip_folder, tmp_path, changed, monkeypatch
):
    """Kind: sizes in a file that are allocated before they are checked."""
    folder = shutil.copytree(clip_folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    monkeypatch.setattr(
        "transformers.CLIPTextModel.from_pretrained", lambda *_, **__: pytest.fail("the network was built")
    )
    with pytest.raises(UserError, match="text_encoder_path") as error:
        CLIPTextEncoder(folder)(["a"])
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "wordless")
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"wordless.*no tokenizer"):
        CLIPTextEncoder(folder)(["a"])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"text_config": []}', '{"hidden_size": "8"}', '{"hidden_size": 1e9}', "[" * 100_000, "9" * 5000],
)
def test_a_damaged_config_is_one_line(clip_folder, tmp_path, content):
    """Kind: malformed files."""
    folder = shutil.copytree(clip_folder, tmp_path / "broken")
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="broken") as error:
        CLIPTextEncoder(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_named(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="broken") as error:
        CLIPTextEncoder(folder)(["a"])
    assert "\n" not in str(error.value)
