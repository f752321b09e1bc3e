"""Generating images from an exported model: code shared by `generate` and `python -m zigma_pl sample`."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from zigma_pl.core.batch import Conditions
from zigma_pl.core.class_paths import build_described, options_of
from zigma_pl.core.errors import UserError
from zigma_pl.core.grid import to_pil, to_uint8
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.requested import RequestedData
from zigma_pl.data.samples import Sample
from zigma_pl.encoders.autoencoder import Autoencoder
from zigma_pl.encoders.text import TextEncoder, TextEncoderName
from zigma_pl.interop.sampling import SamplingOptions, autocast, sampling_options
from zigma_pl.interpolant.samplers import Guidance, Sampler
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.training.module import GenerativeModule, mismatch

ENCODER_OPTIONS = ("autoencoder", "autoencoder_subfolder", "text_encoder", "text_encoder_path", "max_caption_tokens")
MAX_SIDE_PX = 65_536


class PretrainedModel(GenerativeModule):
    """A model loaded from a folder or checkpoint, with a method that generates images.

    Attributes:
        allow_imports: other packages whose classes the model's encoders may use.
    """

    allow_imports: tuple[str, ...] = ()

    def generate(
        self,
        prompts: str | int | Sequence[str | int] | None = None,
        num: int = 1,
        *,
        classes: str | int | Sequence[str | int] | None = None,
        conditions: Conditions | None = None,
        image: Image | str | Path | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        num_steps: int | None = None,
        t_start: float = 1.0,
        t_end: float = 0.0,
        guidance: float | Guidance | None = None,
        image_size_px: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        precision: str | None = None,
        autoencoder: str | Autoencoder | None = None,
        autoencoder_subfolder: str | None = None,
        text_encoder: TextEncoderName | TextEncoder | None = None,
        text_encoder_path: str | None = None,
        allow_hub: bool = False,
    ) -> list[Any]:
        """Generate images, on the device of the model.

        An image depends only on the seed, its index in the list and its prompt or class; the batch size and the other
        prompts affect only rounding.

        Args:
            prompts: captions, or names or indices of classes if the model is conditioned only on classes. None for an
                unconditional model.
            num: number of images for each prompt or class.
            classes: names or indices of classes, for a model conditioned on captions and classes.
            conditions: further conditions by name, each of one sample, (1, ...), and used for all images, for example
                {"edges": Condition(edges)} with edges (1, 1, H, W). A condition that is not given is null.
            image: image to start from instead of noise alone (image-to-image), with `t_start` below 1: a PIL image or
                a file, which is resized and cropped to the size of the samples.
            seed: seed of the noise.
            sampler: such as `zigma_pl.samplers.MultistepSampler(order=3)`; None for the model's.
            num_steps: number of steps of the sampler; None for the sampler's.
            t_start: start time, in (0, 1]: 1 is noise, and lower times keep more of `image`.
            t_end: end time, in [0, t_start). 0 is data; the images of later times still contain noise.
            guidance: guidance scale, or a `zigma_pl.samplers.Guidance` with scale, interval and dropped conditions. A
                scale keeps the model's interval and dropped conditions; None keeps all of the model's guidance.
            image_size_px: side of the images, or (height, width); None for the model's. Another size requires weights
                whose shapes do not depend on it, for example no position embedding.
            batch_size: number of images generated at a time.
            precision: 32-true, bf16-mixed or 16-mixed; None for bf16-mixed on a GPU with bfloat16, and otherwise for
                float32, unless the call is made under autocast.
            autoencoder, autoencoder_subfolder, text_encoder, text_encoder_path: frozen encoders, if the model does not
                name them or they have moved; see `ImageDataModule`.
            allow_hub: download the autoencoder that the model names from the Hugging Face hub.

        Returns: PIL images, `num` for the first prompt, then `num` for the next; for a video model, lists of frames.

        Raises: UserError if prompts or options do not suit the model, or an encoder is unknown or missing.
        """
        check_whole_numbers("generate", most=1_000_000, num=num, batch_size=batch_size)
        named = {
            "autoencoder": autoencoder,
            "autoencoder_subfolder": autoencoder_subfolder,
            "text_encoder": text_encoder,
            "text_encoder_path": text_encoder_path,
        }
        if classes is None and self.backbone.caption_dim is None:
            prompts, classes = None, prompts
        requests = requests_of(self, _as_list(prompts), _as_list(classes), num)
        encoders = encoders_of(self, named, allow_hub=allow_hub, allow_imports=self.allow_imports)
        options = SamplingOptions(seed, sampler, num_steps, guidance, t_start, t_end)
        options.check_image(image is not None)
        given = {"conditions": conditions, "image": image}
        model, data = model_and_data(self, requests, {**encoders, **given}, batch_size, image_size_px)
        generated: list[Any] = []
        with sampling_options(model, options):
            for raw in data.predict_dataloader():
                moved = data.transfer_batch_to_device(raw, model.device, 0)
                batch = data.encode(moved, model.device)
                with autocast(model.device, precision):
                    samples = model.predict_step(batch, 0)
                generated += map(as_pil, to_uint8(data.decode(samples.latents)))
        return generated


def _as_list(given: str | int | Sequence[str | int] | None) -> list[str | int]:
    return [] if given is None else [given] if isinstance(given, (str, int)) else list(given)


def as_pil(picture: torch.Tensor) -> Image | list[Image]:
    """Return an image (H, W, C) uint8 as a PIL image, a clip (F, H, W, C) as a list of PIL images."""
    return [to_pil(frame) for frame in picture] if picture.ndim == 4 else to_pil(picture)


# --- what to generate -------------------------------------------------------------------------------------------------


def requests_of(
    model: GenerativeModule, prompts: Sequence[Any], classes: Sequence[str | int], num: int
) -> list[Sample]:
    """Return the requested samples: `num` for each prompt, each class, or each pair of both.

    Args:
        model: the model; its `trained_on` holds the names of the classes.
        prompts: captions.
        classes: names or indices of classes.
        num: samples of each.

    Raises: UserError if the model is not conditioned on what is given, or a class is unknown.
    """
    takes = (model.backbone.caption_dim is not None, model.backbone.num_classes is not None)
    if takes != (bool(prompts), bool(classes)) or not all(isinstance(prompt, str) for prompt in prompts):
        known = _known_classes(model)
        remedy = {
            (True, False): "conditioned on captions: pass prompts (--prompt), not classes",
            (False, True): f"conditioned on classes: pass classes (--class) among {known}, not prompts",
            (True, True): f"conditioned on both: pass prompts (--prompt) and classes (--class) among {known}",
            (False, False): "unconditional: pass neither prompts (--prompt) nor classes (--class)",
        }[takes]
        raise UserError(f"this model is {remedy}")
    captions: list[dict[str, Any]] = [{"caption": prompt} for prompt in prompts] or [{}]
    class_ids: list[dict[str, Any]] = [{"class_id": class_id_of(model, name)} for name in classes] or [{}]
    requests = [caption | class_id for caption in captions for class_id in class_ids]
    return [Sample(first * num + index, **request) for first, request in enumerate(requests) for index in range(num)]


def class_id_of(model: GenerativeModule, name: str | int) -> int:
    """Return the index of a class, given its name or its index. Names take precedence.

    Raises: UserError if there is no such class; the error suggests similar names.
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
    indices = f"0 to {(model.backbone.num_classes or 0) - 1}"
    names = model.trained_on.get("class_names")
    if not names or list(names) == list(map(str, range(len(names)))):
        return indices
    return f"{', '.join(names[:10])}{' and others' if len(names) > 10 else ''}, or {indices}"


# --- encoders and sizes -----------------------------------------------------------------------------------------------


def encoders_of(
    model: GenerativeModule, given: Mapping[str, Any], *, allow_hub: bool, allow_imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of the encoders: those given, and for the others those that the model was trained with.

    Relative paths that the model names are relative to the working directory, as in the training run.

    Raises: UserError if a needed encoder is not named, or only the model names it, on the hub, without `allow_hub`.
    """
    data = model.trained_on.get("data", {})
    found = {name: data[name] for name in ENCODER_OPTIONS if data.get(name) is not None}
    if data.get("class_path"):  # a data module without this option yields pixels
        found.setdefault("autoencoder", "identity")
    for name, belonging in (("autoencoder", "autoencoder_subfolder"), ("text_encoder", "text_encoder_path")):
        if given.get(name) is not None:
            found.pop(belonging, None)  # it belongs to the replaced encoder
            if name == "text_encoder" and not isinstance(given[name], str):
                found.pop("max_caption_tokens", None)
    named = found.get("autoencoder", "identity")
    is_on_hub = isinstance(named, str) and named != "identity" and not Path(named).is_dir()
    if given.get("autoencoder") is None and is_on_hub and not allow_hub:
        raise UserError(
            f"the model's autoencoder '{named}' is not a local folder: pass its folder as autoencoder (--autoencoder), "
            "or allow_hub (--allow_hub) to download it from the Hugging Face hub"
        )
    found |= {name: value for name, value in given.items() if value is not None}
    if "autoencoder" not in found:
        raise UserError("config.json does not name the model's autoencoder: pass autoencoder (--autoencoder)")
    if model.backbone.caption_dim is not None and "text_encoder" not in found:
        raise UserError("config.json does not name the model's text encoder: pass text_encoder (--text_encoder)")
    for name, base in (("autoencoder", Autoencoder), ("text_encoder", TextEncoder)):
        if isinstance(found.get(name), Mapping):
            found[name] = build_described(found[name], base, allow_imports)  # type: ignore[type-abstract]
    return found


def model_and_data(
    model: GenerativeModule,
    requests: Sequence[Sample],
    given: Mapping[str, Any],
    batch_size: int,
    size: int | tuple[int, int] | None = None,
) -> tuple[GenerativeModule, RequestedData]:
    """Return a model for images of this size (the given model, if it has this size) and a data module of the requests.

    Args:
        model: the model.
        requests: conditions of the samples.
        given: encoders, further conditions and the image to start from; see `RequestedData`.
        batch_size: samples per batch.
        size: side in pixels, or (height, width); None for the model's.

    Raises: UserError if an encoder does not suit the model, or it cannot generate this size.
    """
    data = RequestedData(model.backbone, requests, batch_size, **given)
    if size is None:
        return model, data
    height, width = (size, size) if isinstance(size, int) else size
    check_whole_numbers("image_size_px", most=MAX_SIDE_PX, height=height, width=width)
    downsampling = data.frozen_autoencoder.downsampling
    if height % downsampling or width % downsampling:
        raise UserError(f"image_size_px: {height} x {width} is not a multiple of {downsampling}, the pixels per latent")
    backbone = resized(model.backbone, height // downsampling, width // downsampling)
    if backbone is model.backbone:
        return model, data
    other = type(model)(backbone, model.objective, model.sampler, model.guidance, seed=model.seed)
    other.trained_on = model.trained_on
    if model.weak_backbone is not None:
        weak = resized(model.weak_backbone, height // downsampling, width // downsampling)
        other.guide_with(type(model)(weak, model.objective))
    return other.to(model.device), RequestedData(backbone, requests, batch_size, **given)


def resized(backbone: Backbone, height: int, width: int) -> Backbone:
    """Return a backbone with the same weights for latents of another height and width.

    Raises: UserError if shapes of weights depend on the size.
    """
    if tuple(backbone.latent_shape[-2:]) == (height, width):
        return backbone
    options = options_of(backbone)
    if not {"latent_height", "latent_width"} <= options.keys():
        raise UserError(f"image_size_px: {type(backbone).__name__} has a fixed size: omit the option")
    other = type(backbone)(**{**options, "latent_height": height, "latent_width": width})
    weights = backbone.state_dict()
    wrong = mismatch(other.state_dict(), weights)
    if wrong is not None:
        own_height, own_width = backbone.latent_shape[-2:]
        raise UserError(
            f"image_size_px: the model generates only latents of {own_height} x {own_width}, because weights depend on "
            f"the size ({wrong}): omit the option"
        )
    other.load_state_dict(weights)
    return other.eval()
