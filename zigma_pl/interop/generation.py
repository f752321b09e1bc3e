"""Pictures from an exported model under prompts or classes: what `generate` and `python -m zigma_pl sample` share."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from zigma_pl.core.class_paths import build_described, options_of
from zigma_pl.core.errors import UserError
from zigma_pl.core.grid import to_pil, to_uint8
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.data.requested import RequestedData
from zigma_pl.data.samples import Sample
from zigma_pl.encoders.autoencoder import Autoencoder
from zigma_pl.encoders.text import TextEncoder, TextEncoderName
from zigma_pl.interpolant.samplers import Sampler
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.training.module import GenerativeModule, mismatch

ENCODER_OPTIONS = ("autoencoder", "autoencoder_subfolder", "text_encoder", "text_encoder_path", "max_caption_tokens")
MAX_SIDE_PX = 65_536


class PretrainedModel(GenerativeModule):
    """A model out of a folder, which can generate pictures by itself.

    Attributes:
        allow_imports: packages, other than this one, whose classes the folder may name.
    """

    allow_imports: tuple[str, ...] = ()

    def generate(
        self,
        prompts: str | int | Sequence[str | int] | None = None,
        num: int = 1,
        *,
        classes: str | int | Sequence[str | int] | None = None,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        autoencoder: str | Autoencoder | None = None,
        autoencoder_subfolder: str | None = None,
        text_encoder: TextEncoderName | TextEncoder | None = None,
        text_encoder_path: str | None = None,
        allow_hub: bool = False,
    ) -> list[Any]:
        """Generate pictures, on the device that the model is on.

        A picture is a function of the seed, of its number in the list and of its prompt or class. The batch size and
        the rest of the list change no more than its rounding.

        Args:
            prompts: captions; of a model that takes classes alone, names or numbers of classes. None for a model
                without conditions.
            num: pictures of each prompt or class.
            classes: names or numbers of classes, for a model that takes captions too.
            steps: steps of the sampler; None for the model's.
            seed: other seeds, other pictures.
            guidance: how strongly to follow the condition; None for the model's.
            size: side of the pictures in pixels, or (height, width); None for the model's. Another size than the
                model's needs a model whose weights do not depend on it, such as one without position embedding.
            batch_size: pictures generated at a time.
            autoencoder, autoencoder_subfolder, text_encoder, text_encoder_path: frozen encoders, where the model does
                not name them or they are elsewhere; see `ImageDataModule`.
            allow_hub: download the autoencoder that the model names on the Hugging Face hub.

        Returns: `num` PIL pictures of the first prompt, then of the next; of a model of clips, a list of frames each.

        Raises: UserError for prompts or options that do not fit the model, and encoders that are unknown or missing.
        """
        check_whole_numbers("generate", most=1_000_000, num=num, batch_size=batch_size)
        given = {
            "autoencoder": autoencoder,
            "autoencoder_subfolder": autoencoder_subfolder,
            "text_encoder": text_encoder,
            "text_encoder_path": text_encoder_path,
        }
        if classes is None and self.backbone.caption_dim is None:
            prompts, classes = None, prompts
        requests = requests_of(self, _as_list(prompts), _as_list(classes), num)
        encoders = encoders_of(self, given, allow_hub=allow_hub, allow_imports=self.allow_imports)
        model, data = model_and_data(self, requests, encoders, batch_size, size)
        generated: list[Any] = []
        with _as_asked(model, seed=seed, steps=steps, guidance=guidance):
            for raw in data.predict_dataloader():
                moved = data.transfer_batch_to_device(raw, model.device, 0)
                samples = model.sample(data.encode(moved, model.device))
                generated += map(as_pil, to_uint8(data.decode(samples.latents)))
        return generated


def _as_list(given: str | int | Sequence[str | int] | None) -> list[str | int]:
    return [] if given is None else [given] if isinstance(given, (str, int)) else list(given)


def as_pil(picture: torch.Tensor) -> Image | list[Image]:
    """Return a picture (H, W, C) uint8 as PIL has it, a clip (F, H, W, C) as the list of its frames."""
    return [to_pil(frame) for frame in picture] if picture.ndim == 4 else to_pil(picture)


@contextmanager
def _as_asked(
    model: GenerativeModule, *, seed: int, steps: int | None, guidance: float | None
) -> Iterator[GenerativeModule]:
    """Within the block, have a model sample in evaluation mode and with these options."""
    before = {name: getattr(model, name) for name in ("seed", "sampler", "guidance")}
    was_training = model.training
    try:
        set_sampling(model.eval(), seed=seed, steps=steps, guidance=guidance)
        yield model
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        model.train(was_training)


def set_sampling(model: GenerativeModule, *, seed: int, steps: int | None, guidance: float | None) -> None:
    """Replace the options of a model's sampling; None keeps the model's own.

    Raises: UserError for a value out of range, and steps for a sampler that takes none.
    """
    check_whole_numbers("generate", least=0, most=LARGEST_SEED, seed=seed)
    model.seed = seed
    model.sampler = sampler_with_steps(model.sampler, steps)
    if guidance is not None:
        model.guidance = replace(model.guidance, scale=guidance)


def sampler_with_steps(sampler: Sampler, num_steps: int | None) -> Sampler:
    """Return the sampler with another number of steps, or as it is for None.

    Raises: UserError for a number out of range, or a sampler that chooses its steps itself.
    """
    if num_steps is None:
        return sampler
    options = options_of(sampler)
    if "num_steps" not in options or options.get("method") == "dopri5":
        name = options.get("method", type(sampler).__name__)
        raise UserError(f"steps: the model's sampler, {name}, chooses its steps itself; leave the option out")
    return type(sampler)(**{**options, "num_steps": num_steps})


# --- what to generate -------------------------------------------------------------------------------------------------


def requests_of(
    model: GenerativeModule, prompts: Sequence[Any], classes: Sequence[str | int], num: int
) -> list[Sample]:
    """Return what to generate: `num` samples of each prompt, class, or pair of both, one after the other.

    Args:
        model: whose `trained_on` has the names of the classes.
        prompts: captions.
        classes: names or numbers of classes.
        num: samples of each.

    Raises: UserError when they are not what the model is conditioned on, or a class is unknown.
    """
    takes = (model.backbone.caption_dim is not None, model.backbone.num_classes is not None)
    if takes != (bool(prompts), bool(classes)) or not all(isinstance(prompt, str) for prompt in prompts):
        known = _known_classes(model)
        remedy = {
            (True, False): "is told what to generate in words: give prompts (--prompt), and no classes",
            (False, True): f"generates classes: give some of {known} (--class), and no prompts",
            (True, True): f"takes words and classes: give prompts (--prompt), and classes out of {known} (--class)",
            (False, False): "has no condition: give neither prompts (--prompt) nor classes (--class)",
        }[takes]
        raise UserError(f"the model {remedy}")
    captions: list[dict[str, Any]] = [{"caption": prompt} for prompt in prompts] or [{}]
    numbers: list[dict[str, Any]] = [{"class_id": class_id_of(model, name)} for name in classes] or [{}]
    asked = [caption | class_id for caption in captions for class_id in numbers]
    return [Sample(number * num + place, **request) for number, request in enumerate(asked) for place in range(num)]


def class_id_of(model: GenerativeModule, name: str | int) -> int:
    """Return the number of a class from its name or, where no class has such a name, from its number.

    Raises: UserError when there is no such class; the error names the nearest ones.
    """
    names = list(model.trained_on.get("class_names", ()))
    if isinstance(name, str) and name in names:
        return names.index(name)
    if not isinstance(name, str) or (name.isascii() and name.isdigit() and len(name) < 10):
        if 0 <= int(name) < (model.backbone.num_classes or 0):
            return int(name)
        raise UserError(f"class {name}: the classes of the model are {_known_classes(model)}")
    by_lower_case = {known.lower(): known for known in names}
    near = [by_lower_case[match] for match in difflib.get_close_matches(name.lower(), by_lower_case, n=3)]
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(f"class {name[:100]!r}: the classes of the model are {_known_classes(model)}{meant}")


def _known_classes(model: GenerativeModule) -> str:
    numbers = f"0 to {(model.backbone.num_classes or 0) - 1}"
    names = model.trained_on.get("class_names")
    if not names or list(names) == list(map(str, range(len(names)))):
        return numbers
    return f"{', '.join(names[:10])}{' and others' if len(names) > 10 else ''}, or {numbers}"


# --- encoders and sizes -----------------------------------------------------------------------------------------------


def encoders_of(
    model: GenerativeModule, given: Mapping[str, Any], *, allow_hub: bool, allow_imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of the encoders: those given, before those that the model was trained with.

    Paths that the model names are relative to the working directory, as they were in the training run.

    Raises: UserError when neither names one that is needed, or the model alone names one on the hub and `allow_hub` is
        not given.
    """
    data = model.trained_on.get("data", {})
    found = {name: data[name] for name in ENCODER_OPTIONS if data.get(name) is not None}
    if data.get("class_path"):  # a data set that does not have the option is of pixels
        found.setdefault("autoencoder", "identity")
    for name, belonging in (("autoencoder", "autoencoder_subfolder"), ("text_encoder", "text_encoder_path")):
        if given.get(name) is not None:
            found.pop(belonging, None)  # it was the other one's
            if name == "text_encoder" and not isinstance(given[name], str):
                found.pop("max_caption_tokens", None)
    named = found.get("autoencoder", "identity")
    is_elsewhere = isinstance(named, str) and named != "identity" and not Path(named).is_dir()
    if given.get("autoencoder") is None and is_elsewhere and not allow_hub:
        raise UserError(
            f"the model names the autoencoder '{named}', which is no folder here: give its folder as autoencoder "
            "(--autoencoder), or allow_hub (--allow-hub) to download it from the Hugging Face hub"
        )
    found |= {name: value for name, value in given.items() if value is not None}
    if "autoencoder" not in found:
        raise UserError("the model does not tell how latents become pictures: give autoencoder (--autoencoder)")
    if model.backbone.caption_dim is not None and "text_encoder" not in found:
        raise UserError(
            "the model does not tell which text encoder it was trained with: give text_encoder (--text-encoder)"
        )
    for name, base in (("autoencoder", Autoencoder), ("text_encoder", TextEncoder)):
        if isinstance(found.get(name), Mapping):
            found[name] = build_described(found[name], base, allow_imports)  # type: ignore[type-abstract]
    return found


def model_and_data(
    model: GenerativeModule,
    requests: Sequence[Sample],
    encoders: Mapping[str, Any],
    batch_size: int,
    size: int | tuple[int, int] | None = None,
) -> tuple[GenerativeModule, RequestedData]:
    """Return a model for pictures of this size, which is the one given where that is its own, and its requests.

    Raises: UserError for encoders that are not the model's, or a size that it cannot generate.
    """
    data = RequestedData(model.backbone, requests, batch_size, **encoders)
    if size is None:
        return model, data
    height, width = (size, size) if isinstance(size, int) else size
    check_whole_numbers("size", most=MAX_SIDE_PX, height=height, width=width)
    downsampling = data.frozen_autoencoder.downsampling
    if height % downsampling or width % downsampling:
        raise UserError(f"size: {height} x {width} is not a multiple of {downsampling} pixels, one latent")
    backbone = resized(model.backbone, height // downsampling, width // downsampling)
    if backbone is model.backbone:
        return model, data
    other = type(model)(backbone, model.objective, model.sampler, model.guidance, seed=model.seed)
    other.trained_on = model.trained_on
    return other.to(model.device), RequestedData(backbone, requests, batch_size, **encoders)


def resized(backbone: Backbone, height: int, width: int) -> Backbone:
    """Return a backbone of the same weights for latents of another height and width.

    Raises: UserError where weights depend on the size.
    """
    if tuple(backbone.latent_shape[-2:]) == (height, width):
        return backbone
    options = options_of(backbone)
    if not {"latent_height", "latent_width"} <= options.keys():
        raise UserError(f"size: {type(backbone).__name__} has one size only; leave the option out")
    other = type(backbone)(**{**options, "latent_height": height, "latent_width": width})
    weights = backbone.state_dict()
    wrong = mismatch(other.state_dict(), weights)
    if wrong is not None:
        own_height, own_width = backbone.latent_shape[-2:]
        raise UserError(
            f"size: the model generates latents of {own_height} x {own_width} only, because weights depend on the size "
            f"({wrong}); leave the option out"
        )
    other.load_state_dict(weights)
    return other.eval()
