"""Base class of all data modules: loaders, sample order, resuming, and the frozen encoders that make latents."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import ValidationError
from torch import Tensor

from zigma_pl.core.batch import CAPTION, CLASS, Batch, Condition, RawBatch
from zigma_pl.core.class_paths import (
    Configurable,
    check_recordable,
    class_name,
    options_of,
    plain,
    public_path,
    recorded,
)
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.core.records import problems
from zigma_pl.data.cache.manifest import Content, Manifest
from zigma_pl.data.cache.reading import PreparedSet
from zigma_pl.data.conditions import ConditionSamples, ItemConditions, example_captions
from zigma_pl.data.encoders import Encoders, move
from zigma_pl.data.images import CROP, CroppedImages, ImageDataset, PixelDataset
from zigma_pl.data.loading import Loaders
from zigma_pl.data.samples import (
    PixelSamples,
    SampleLoader,
    Split,
    SplitSamples,
    held_out_conditions,
    read_batch,
)
from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder, build_autoencoder
from zigma_pl.encoders.text import TextEncoderName, build_text_encoder
from zigma_pl.encoders.text_base import TextEncoder

MAX_SIDE_PX = 65_536

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # types that JSON can represent

SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": (),
}


class ImageDataModule(Configurable, L.LightningDataModule, ABC):
    """A data set, and the frozen encoders of its images and captions.

    Base class of all data modules. Subclasses implement `load_split` and set the class attributes below.

    Workers decode and crop images to uint8. `on_after_batch_transfer` then runs on the device: it computes latents with
    the frozen autoencoder and caption features with the frozen text encoder. The encoders belong to the data module and
    not to the LightningModule, so that they are neither averaged nor saved in checkpoints. `sample_ids` stay on the
    CPU, where the per-sample random generators are: reading them back from a GPU would synchronise with it.

    Args:
        batch_size: images per step and process.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        seed: seed of sample order, mirroring, caption choice and posterior samples.
        image_size_px: side of the square images.
        horizontal_flip: mirror a random half of the training images.
        autoencoder: "identity" to train on pixels, the folder or hub name of a diffusers AutoencoderKL, or the class
            path of your own `Autoencoder`.
        autoencoder_subfolder: subfolder of the autoencoder, such as "vae".
        cache: folder written by `python -m zigma_pl prepare`, read instead of the data set itself. Its options must
            equal these; an error names the first that differs. May also be a URL that fsspec opens, such as
            "https://host/folder" or "s3://bucket/folder": the folder is downloaded once, and its hashes are checked.
        keep_fetched_in: folder for downloaded caches; None for ~/.cache/zigma_pl/prepared.
        text_encoder: encoder of the captions, if the data set has captions: clip (needs text_encoder_path), minilm (a
            Python package, no download) or hashing (no weights and no semantics, for trying things out), or the class
            path of your own `TextEncoder`.
        text_encoder_path: folder of the text encoder's weights.
        caption_dim: width of a caption token's features; None for the encoder's default (hashing: 256).
        max_caption_tokens: longest caption in tokens; None for the encoder's default (hashing: 32).
        predict_captions: captions that `predict` and previews cycle through; None for those saved with the model, which
            are some captions of the validation split.
        num_predict_samples: number of samples that `predict` generates.
    """

    num_classes: int | None = None
    class_names: Sequence[str] | None = None  # names of classes 0, 1, ..., if known
    num_frames: int | None = None  # frames per clip; None for images
    has_captions: bool = False
    image_channels: ClassVar[int] = 3
    options_that_only_locate: ClassVar[tuple[str, ...]] = ("root",)  # paths, which do not determine the content

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        image_size_px: int = 256,
        horizontal_flip: bool = False,
        autoencoder: str | Autoencoder = "identity",
        autoencoder_subfolder: str | None = None,
        cache: str | None = None,
        keep_fetched_in: str | None = None,
        text_encoder: TextEncoderName | TextEncoder = "hashing",
        text_encoder_path: str | None = None,
        caption_dim: int | None = None,
        max_caption_tokens: int | None = None,
        predict_captions: list[str] | None = None,
        num_predict_samples: int = 16,
    ) -> None:
        super().__init__()
        check_whole_numbers("data", batch_size=batch_size, num_predict_samples=num_predict_samples)
        check_whole_numbers("data", most=MAX_SIDE_PX, image_size_px=image_size_px)
        check_whole_numbers("data", least=0, most=1024, num_workers=num_workers)
        check_whole_numbers("data", least=0, most=LARGEST_SEED, seed=seed)
        check_whole_numbers("data", most=65_536, caption_dim=caption_dim, max_caption_tokens=max_caption_tokens)
        if predict_captions == []:
            raise UserError("data.predict_captions is empty: give at least one caption, or leave the option out")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.image_size_px = image_size_px
        self.horizontal_flip = horizontal_flip
        self.autoencoder = autoencoder
        self.autoencoder_subfolder = autoencoder_subfolder
        self.cache = cache
        self.keep_fetched_in = keep_fetched_in
        self._prepared = None if cache is None else PreparedSet(cache, keep_fetched_in)
        self.num_predict_samples = num_predict_samples
        self.predict_captions = predict_captions if self.has_captions else None
        self._named_encoders: dict[str, Any] = {
            "autoencoder": autoencoder,
            "autoencoder_subfolder": autoencoder_subfolder,
        }
        self._text_encoder: TextEncoder | None = None
        if self.has_captions:
            self._named_encoders |= {
                "text_encoder": text_encoder,
                "text_encoder_path": text_encoder_path,
                "max_caption_tokens": max_caption_tokens,
            }
            self._text_encoder = build_text_encoder(text_encoder, text_encoder_path, caption_dim, max_caption_tokens)
        self._splits: dict[Split, SplitSamples] = {}
        self._pixel_items: dict[Split, PixelDataset] = {}
        # With more ranks than images, some ranks have nothing to evaluate, which is fine.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def load_split(self, split: Split) -> ImageDataset | Sequence[Any]:
        """Open one split: its images, or the items that a subclass's `open_pixel_items` turns into pixels.

        Raises:
            UserError: the files are missing; the message gives folder, expected layout and remedy.
        """

    def pixel_items(self, split: Split) -> PixelDataset:
        """Return one split as cropped images, without random augmentation; the result is cached."""
        if split not in self._pixel_items:
            self._pixel_items[split] = self.open_pixel_items(split)
        return self._pixel_items[split]

    def open_pixel_items(self, split: Split) -> PixelDataset:
        """Open a split for `pixel_items`."""
        images = self.load_split(split)
        assert isinstance(images, ImageDataset)
        return CroppedImages(images, self.image_size_px)

    def live_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        """Open one split as the loader reads it without a cache."""
        return PixelSamples(self.pixel_items(split), seed=self.seed, horizontal_flip=horizontal_flip)

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content, except encoders.

        Includes every option that a subclass adds, except `options_that_only_locate`: the value that was passed and, if
        an attribute of the same name differs from it, that attribute. A cache is only used if all of these are equal.
        """
        return {"image_size_px": self.image_size_px, "crop": CROP, "num_frames": self.num_frames, **self._own_options()}

    def kept_with_model(self) -> dict[str, Any]:
        """Return plain values that are saved with a model trained on this data and needed to sample from it later."""
        data = {"class_path": public_path(type(self)), "image_size_px": self.image_size_px}
        for name, value in self._named_encoders.items():
            try:
                kept = recorded(value, f"data.{name}") if isinstance(value, (Autoencoder, TextEncoder)) else value
                data |= {} if kept is None else {name: kept}
            except UserError as error:  # training does not need it; sampling then needs the option again
                rank_zero_warn(f"not saved with the model: {error}")
        names = self.class_names
        if names is None and self.prepared is not None:
            names = self.prepared.class_names
        names_of_classes = {} if names is None else {"class_names": list(names)}
        captions = {"captions": self.predict_captions or self.example_captions()} if self.has_captions else {}
        return {"data": data, **names_of_classes, **captions}

    def example_captions(self) -> list[str]:
        """Return captions of some items of the validation split, always the same.

        Raises:
            UserError: the split cannot be opened.
        """
        try:
            items = self.samples("validation")
        except UserError as error:
            raise UserError(f"{error}; or give captions to sample as data.predict_captions") from error
        return example_captions(items)

    def content(self) -> Content:
        """Return the content of a cache prepared with these options; loads the encoders' weights to hash them."""
        items = self.described()
        check_recordable(items, "data")
        content = {
            "dataset": class_name(type(self)),
            "items": items,
            "num_classes": self.num_classes,
            "autoencoder": self.frozen_autoencoder.fingerprint(),
            "text_encoder": None if self._text_encoder is None else self._text_encoder.fingerprint(),
        }
        try:
            return Content.model_validate_json(json.dumps(content))  # tuples become lists, as they do on disk
        except ValidationError as error:
            raise UserError(
                f"{type(self).__name__} cannot be prepared ({problems(error)}): fix these options"
            ) from error

    @property
    def prepared(self) -> Manifest | None:
        """Manifest of the cache, None without a cache."""
        return None if self._prepared is None else self._prepared.manifest

    @property
    def frozen_autoencoder(self) -> Autoencoder:
        """The frozen autoencoder; its weights are loaded on first use."""
        return self._encoder

    @property
    def has_images(self) -> bool:
        """Whether batches contain the images; a cache has none, except with the identity autoencoder."""
        return self.cache is None or isinstance(self.frozen_autoencoder, IdentityAutoencoder)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The frozen text encoder, None without captions."""
        return self._text_encoder

    @property
    def caption_dim(self) -> int | None:
        """Width of a caption token's features, None without captions."""
        return None if self._text_encoder is None else self._text_encoder.dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents, (C, H, W) or (F, C, H, W) for clips; known before any data is loaded."""
        encoder = self._encoder
        if self.image_size_px % encoder.downsampling:
            raise UserError(
                f"data.image_size_px {self.image_size_px} is not a multiple of {encoder.downsampling}, the "
                f"downsampling factor of the autoencoder '{self.autoencoder}': choose a multiple"
            )
        side = self.image_size_px // encoder.downsampling
        frames = () if self.num_frames is None else (self.num_frames,)
        return *frames, encoder.channels, side, side

    def setup(self, stage: str) -> None:
        """Open only the splits that the stage needs; `predict` needs none."""
        for split in SPLITS_OF_STAGE[stage]:
            self.samples(split)
        assert self.latent_shape  # raises before training if the image size does not fit the autoencoder

    def train_dataloader(self) -> SampleLoader:
        """Return the endless training batches, starting at the current training step."""
        return self._loaders.training(self.samples("train"), self.seed)

    def val_dataloader(self) -> SampleLoader:
        """Return the validation split; every image occurs once over all ranks."""
        return self._loaders.evaluation(self.samples("validation"))

    def test_dataloader(self) -> SampleLoader:
        """Return the test split; every image occurs once over all ranks."""
        return self._loaders.evaluation(self.samples("test"))

    def predict_dataloader(self) -> SampleLoader:
        """Return conditions without images for sample ids 0 to num_predict_samples - 1; needs no data set on disk."""
        return self._loaders.conditions(self._conditions(), self.num_predict_samples)

    def raw_conditions(self, sample_ids: Sequence[int]) -> RawBatch:
        """Return the classes and captions that `predict` and previews use for these sample ids.

        Sample ids cycle through classes or captions (`predict_captions`). With both, every class has the first caption,
        then every class the second. If the model of the trainer has other
        conditions, such as a map, the batch consists of items of the validation split, from which they are computed.

        Raises:
            UserError: the validation split is needed and cannot be opened.
        """
        return read_batch(self._conditions(), [(sample_id, sample_id) for sample_id in sample_ids])

    def conditions(self, sample_ids: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the batch without latents that `predict` and previews use for these sample ids."""
        raw = move(self.raw_conditions(sample_ids), torch.device(device))
        return Batch(None, raw.sample_ids, self.encode_conditions(raw, device))

    def held_out_conditions(self, split: Split, sample_ids: Sequence[int]) -> RawBatch:
        """Return the classes or captions used as conditions in scoring, with the images if the split has pixels.

        Sample i has the condition of item i of the split; indices wrap around if there are more samples than items.
        """
        return held_out_conditions(self.samples(split), sample_ids)

    def transfer_batch_to_device(self, batch: RawBatch, device: torch.device, dataloader_idx: int) -> RawBatch:
        """Move images and class ids; the sample ids stay on the CPU."""
        return move(batch, device)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> Batch:
        """Run the frozen encoders on the batch's device."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        return self.encode(
            batch, next((part.device for part in (batch.images, batch.moments) if part is not None), device)
        )

    @torch.no_grad()
    def encode(self, raw: RawBatch, device: torch.device | str) -> Batch:
        """Turn a raw batch, already on `device`, into the model's input."""
        latents = self._encoders.latents(raw)
        return Batch(latents, raw.sample_ids, self.encode_conditions(raw, device), raw.images)

    def encode_conditions(self, raw: RawBatch, device: torch.device | str) -> dict[str, Condition]:
        """Return the conditions of a raw batch, already on `device`, by name: "class" and "caption".

        Subclasses can add custom conditions, such as a map computed from the images.
        """
        return self._encoders.conditions(raw, device)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images (B, 3 or 1, height, width), or clips (B, F, 3, height, width), in [0, 1]."""
        return self._encoders.decode(latents)

    @property
    def _encoders(self) -> Encoders:
        return Encoders(self._encoder, self._text_encoder, self.seed)

    @property
    def _loaders(self) -> Loaders:
        return Loaders(self.batch_size, self.num_workers, self.trainer)

    @cached_property
    def _encoder(self) -> Autoencoder:
        return build_autoencoder(self.autoencoder, self.image_channels, self.autoencoder_subfolder)

    def samples(self, split: Split) -> SplitSamples:
        """Return a split as the loaders read it; the result is cached."""
        if split not in self._splits:
            flip = self.horizontal_flip and split == "train"
            open_samples = self.live_samples if self.cache is None else self._prepared_samples
            self._splits[split] = open_samples(split, horizontal_flip=flip)
        return self._splits[split]

    def split_fingerprint(self, split: Split) -> str:
        """Return the number of items of a split and a hash of their names in order, for comparison between processes.

        Names are relative to the data set's folder; for a cache, the hashes of its files are used.
        """
        return self.samples(split).fingerprint()

    def _prepared_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        assert self._prepared is not None
        max_tokens = None if self._text_encoder is None else self._text_encoder.max_tokens
        return self._prepared.open(
            split, self.content, seed=self.seed, horizontal_flip=horizontal_flip, max_caption_tokens=max_tokens
        )

    def _own_options(self) -> dict[str, Any]:
        """Return the options that subclasses add: the values passed, and attributes of the same names."""
        parents = [parent for parent in type(self).__mro__ if issubclass(parent, ImageDataModule)]
        names = {name for parent in parents for name in inspect.signature(parent.__init__).parameters}
        of_every_set = inspect.signature(ImageDataModule.__init__).parameters
        names -= {*of_every_set, *self.options_that_only_locate, "num_classes"}
        given = {name: plain(value) for name, value in options_of(self).items() if name in names}
        kept = {name: getattr(self, name, self) for name in sorted(names)}
        kept = {name: plain(value) for name, value in kept.items() if isinstance(value, _PLAIN)}
        differing = {
            f"{name}, as given": given[name]
            for name in given.keys() & kept.keys()
            if given[name] is not None and given[name] != kept[name]
        }
        return {**given, **kept, **differing}

    def _conditions(self) -> ConditionSamples | ItemConditions:
        module = None if self.trainer is None else self.trainer.lightning_module
        backbone: Any = getattr(module, "backbone", None)
        names = {CLASS, CAPTION} if backbone is None else set(backbone.conditioners)
        if names - {CLASS, CAPTION}:
            return ItemConditions(self.samples("validation"), self.predict_captions)
        captions = None
        if self.has_captions and CAPTION in names:
            kept: Any = getattr(module, "trained_on", {})
            captions = self.predict_captions or kept.get("captions") or self.example_captions()
        return ConditionSamples(self.num_classes if CLASS in names else None, captions)
