"""What every image data set shares: loaders, order, resume, and the frozen encoders that turn pixels into latents."""

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

from zigma_pl.core.batch import Batch, Condition, RawBatch
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
from zigma_pl.data.encoders import Encoders, move
from zigma_pl.data.images import CROP, CroppedImages, ImageDataset, PixelDataset
from zigma_pl.data.loading import Loaders
from zigma_pl.data.samples import (
    ConditionSamples,
    PixelSamples,
    Sample,
    SampleLoader,
    Split,
    SplitSamples,
    collate,
    held_out_conditions,
)
from zigma_pl.encoders.autoencoder import Autoencoder, build_autoencoder
from zigma_pl.encoders.text import TextEncoderName, build_text_encoder
from zigma_pl.encoders.text_base import TextEncoder

MAX_SIDE_PX = 65_536

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # what JSON can hold

SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": (),
}


class ImageDataModule(Configurable, L.LightningDataModule, ABC):
    """Base of all data modules: subclasses give `load_split` and, as class attributes, what the set has.

    Workers decode and crop to uint8; `on_after_batch_transfer` does the rest on the device: latents from the frozen
    autoencoder, caption features from the frozen text encoder. Both are kept here and not in the LightningModule, so
    that they are neither averaged nor saved. `sample_ids` stay on the CPU, where the per-sample generators live:
    reading them back from a GPU would wait for everything queued there.

    Args:
        batch_size: images per step and process.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        seed: seed of order, mirroring, captions and posterior draws.
        image_size_px: side of the square pictures.
        horizontal_flip: mirror half of the training images.
        autoencoder: "identity" trains on pixels; else the folder or hub name of a diffusers AutoencoderKL, or an
            `Autoencoder` of your own by class path.
        autoencoder_subfolder: folder inside it that holds the autoencoder, such as "vae".
        cache: folder that `python -m zigma_pl prepare` wrote, read instead of the data set itself. It has to fit these
            options: if one differs, an error names it. It may also be an address that fsspec opens, such as
            "https://host/folder" or "s3://bucket/folder"; it is copied once, and its hashes are checked.
        keep_fetched_in: folder for the copy of a cache at an address; None for ~/.cache/zigma_pl/prepared.
        text_encoder: encoder of the captions, where the data set has any: clip (its weights in text_encoder_path),
            minilm (a package, no download) or hashing (no weights, no meaning: for trying things); or a `TextEncoder`
            of your own by class path.
        text_encoder_path: folder of the text encoder's weights.
        caption_dim: width of a caption token's features; None for the encoder's own (hashing: 256).
        max_caption_tokens: tokens kept of a caption; None for the encoder's own number (hashing: 32).
        predict_captions: captions to draw in `predict`, in turn; by default a few that suit the data set.
        num_predict_samples: pictures that `predict` draws.
    """

    num_classes: int | None = None
    class_names: Sequence[str] | None = None  # of the classes 0, 1, ..., where they are known
    num_frames: int | None = None  # of a clip; None for pictures
    has_captions: bool = False
    image_channels: ClassVar[int] = 3
    default_captions: ClassVar[tuple[str, ...]] = ()
    options_that_only_locate: ClassVar[tuple[str, ...]] = ("root",)  # where the files are, not what is in them

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
        self.predict_captions = list(predict_captions or self.default_captions) if self.has_captions else None
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
        # With more ranks than images, some rank has nothing to evaluate; that is no fault.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def load_split(self, split: Split) -> ImageDataset | Sequence[Any]:
        """Open one split: its pictures, or what the `open_pixel_items` of a subclass cuts to size.

        Raises:
            UserError: it is not there; folder, layout and remedy are named.
        """

    def pixel_items(self, split: Split) -> PixelDataset:
        """Return one split with its pictures cut to size, without anything drawn at random; it is opened once."""
        if split not in self._pixel_items:
            self._pixel_items[split] = self.open_pixel_items(split)
        return self._pixel_items[split]

    def open_pixel_items(self, split: Split) -> PixelDataset:
        """Open what `pixel_items` returns."""
        images = self.load_split(split)
        assert isinstance(images, ImageDataset)
        return CroppedImages(images, self.image_size_px)

    def live_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        """Open one split as the loader reads it from the data set itself, not from a prepared one."""
        return PixelSamples(self.pixel_items(split), seed=self.seed, horizontal_flip=horizontal_flip)

    def described(self) -> dict[str, Any]:
        """Return as plain values what decides which items a split has and what is in them, encoders apart.

        Every option that a subclass adds is part of it, but for `options_that_only_locate`: as it was given and, where
        an attribute of the option's name differs, as that. A prepared set is used only where all these are equal.
        """
        return {"image_size_px": self.image_size_px, "crop": CROP, "num_frames": self.num_frames, **self._own_options()}

    def kept_with_model(self) -> dict[str, Any]:
        """Return plain values that are kept with a model that is trained on the data: how to sample from it later."""
        data = {"class_path": public_path(type(self)), "image_size_px": self.image_size_px}
        for name, value in self._named_encoders.items():
            try:
                kept = recorded(value, f"data.{name}") if isinstance(value, (Autoencoder, TextEncoder)) else value
                data |= {} if kept is None else {name: kept}
            except UserError as error:  # training goes without; to sample, it has to be given again
                rank_zero_warn(f"not kept with the model: {error}")
        names = self.class_names
        return {"data": data, **({} if names is None else {"class_names": list(names)})}

    def content(self) -> Content:
        """Return what a prepared set of these options holds; loads the encoders' weights to hash them."""
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
            raise UserError(f"{type(self).__name__}: cannot be prepared ({problems(error)}); correct it") from error

    @property
    def prepared(self) -> Manifest | None:
        """Manifest of the prepared set that `cache` names, None without."""
        return None if self._prepared is None else self._prepared.manifest

    @property
    def frozen_autoencoder(self) -> Autoencoder:
        """The frozen autoencoder; its weights are loaded when they are first used."""
        return self._encoder

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
        """(C, H, W) of a sample's latents, (F, C, H, W) of a clip's; known before any data is loaded."""
        encoder = self._encoder
        if self.image_size_px % encoder.downsampling:
            raise UserError(
                f"data.image_size_px: {self.image_size_px} is not a multiple of {encoder.downsampling}, the "
                f"downsampling of the autoencoder '{self.autoencoder}'; choose a multiple"
            )
        side = self.image_size_px // encoder.downsampling
        frames = () if self.num_frames is None else (self.num_frames,)
        return *frames, encoder.channels, side, side

    def setup(self, stage: str) -> None:
        """Open the splits that the stage needs, and no others; `predict` needs none."""
        for split in SPLITS_OF_STAGE[stage]:
            self.samples(split)
        assert self.latent_shape  # a size that does not fit the autoencoder is found before training starts

    def train_dataloader(self) -> SampleLoader:
        """Return the endless training batches, from the step that training has come to."""
        return self._loaders.training(self.samples("train"), self.seed)

    def val_dataloader(self) -> SampleLoader:
        """Return the validation split, every image once over all ranks."""
        return self._loaders.evaluation(self.samples("validation"))

    def test_dataloader(self) -> SampleLoader:
        """Return the test split, every image once over all ranks."""
        return self._loaders.evaluation(self.samples("test"))

    def predict_dataloader(self) -> SampleLoader:
        """Return conditions without pictures for sample ids 0 to num_predict_samples - 1; needs no data set on disk."""
        return self._loaders.conditions(self._conditions(), self.num_predict_samples)

    def condition(self, sample_id: int) -> Sample:
        """Return the class or caption, without a picture, that a sample id is drawn under."""
        return self._conditions()[sample_id, sample_id]

    def conditions(self, sample_ids: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the batch without latents that `predict` would see for these sample ids, for previews."""
        raw = collate([self.condition(sample_id) for sample_id in sample_ids])
        return self.encode(move(raw, torch.device(device)), device)

    def held_out_conditions(self, split: Split, sample_ids: Sequence[int]) -> RawBatch:
        """Return the classes or captions, and the pictures if it has them, that scoring takes its conditions from.

        Sample i has those of item i of the split, which come round again where there are more samples than items.
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
        """Turn a raw batch, already on `device`, into what the model sees."""
        latents = self._encoders.latents(raw)
        return Batch(latents, raw.sample_ids, self.encode_conditions(raw, device), raw.images)

    def encode_conditions(self, raw: RawBatch, device: torch.device | str) -> dict[str, Condition]:
        """Return the conditions of a raw batch, already on `device`, by name: "class" and "caption".

        A subclass can add some of its own, such as a map made of the pictures.
        """
        return self._encoders.conditions(raw, device)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures (B, 3 or 1, height, width), or clips (B, F, 3, height, width), in [0, 1]."""
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
        """Return a split as the loaders read it, opened once."""
        if split not in self._splits:
            flip = self.horizontal_flip and split == "train"
            open_samples = self.live_samples if self.cache is None else self._prepared_samples
            self._splits[split] = open_samples(split, horizontal_flip=flip)
        return self._splits[split]

    def split_fingerprint(self, split: Split) -> str:
        """Return the number of items of a split and a hash of their names in order, to be compared between processes.

        Names are relative to the data set's folder; of a prepared set they are the hashes of its files.
        """
        return self.samples(split).fingerprint()

    def _prepared_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        assert self._prepared is not None
        max_tokens = None if self._text_encoder is None else self._text_encoder.max_tokens
        return self._prepared.open(
            split, self.content, seed=self.seed, horizontal_flip=horizontal_flip, max_caption_tokens=max_tokens
        )

    def _own_options(self) -> dict[str, Any]:
        """Return the options that subclasses add, as they were given and as attributes of the same names say."""
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

    def _conditions(self) -> ConditionSamples:
        return ConditionSamples(self.num_classes, self.predict_captions)
