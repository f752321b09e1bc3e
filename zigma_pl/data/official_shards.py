"""The WebDataset shards that the official ZigMa release is trained from, read as they are.

The shards themselves were never published. What is in them is taken from the release's code and configurations
(github.com/CompVis/zigma: README "Dataset Preparation", config/data/*.yaml, datasets/wds_dataloader.py, train_acc.py,
sample_acc.py):

    image.jpg (1024 px: image.png)     the picture, at the stored or a larger size
    img_feature256.npy                 (4, 32, 32) latents of MM-CelebA-HQ, COCO and LSUN Churches
    img_feature512.npy                 (4, 64, 64) latents of MM-CelebA-HQ
    latent.npy                         (4, 128, 128) latents of FacesHQ at 1024 px
    latent_hr.npy                      the same of Landscapes-HQ
    frame_feature256.npy               (F, 4, 32, 32) latents of UCF101, F = 16
    caption_clip_feature.npy           (captions, 77, 768) text features of MM-CelebA-HQ; COCO: caption_feature.npy
    caption.json                       ["...", ...] the captions
    cls_id.cls                         class of a UCF101 clip, decimal digits; its name is in cls_name.json

Sure, since the code relies on it: latents are samples of the posterior without the scale (training multiplies them by
0.18215, decoding the stored ones does without); one of the captions is drawn at each step; all 77 tokens are attended
to, padding too. Inferred: the latents are those of stabilityai/sd-vae-ft-ema, for captioned sets of Stable Diffusion
v1.5, whose CLIP ViT-L/14 gives the text features, since these are what samples are decoded with and what the models'
text width fits; classes count from 0. Unknown: how pictures were cropped, whether any were mirrored, dtypes, names of
samples.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from zigma_pl.batch import Batch
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.samples import ConditionSamples, SplitSamples
from zigma_pl.data.shard_counts import ShardCount, count_samples
from zigma_pl.data.sharded_pictures import ShardedPictures, ShardedPixels
from zigma_pl.data.sharded_samples import ShardReader
from zigma_pl.data.stored_latents import StoredConditions, StoredLatentSpace, StoredSamples
from zigma_pl.data.tar_shards import ShardIndex, TarShard, open_shard
from zigma_pl.encoders.autoencoder import Autoencoder, build_autoencoder
from zigma_pl.errors import UserError

LATENT_SCALE = 0.18215
CAPTION_DIM = 768

Latents = Literal[
    "img_feature256.npy", "img_feature512.npy", "latent.npy", "latent_hr.npy", "frame_feature256.npy", "image"
]
IMAGE_FIELDS = ("image.jpg", "image.png")
CAPTION_FEATURE_FIELDS = ("caption_clip_feature.npy", "caption_feature.npy")
CAPTIONS_FIELD = "caption.json"
CLASS_FIELD = "cls_id.cls"


class OfficialShards(ImageDataModule):
    """The WebDataset shards of the official ZigMa release: stored latents, or the pictures beside them.

    Stored latents need no autoencoder for training, and no preparation but counting the samples of each shard, once.
    Each is a single draw of the posterior of the unmirrored picture, so `horizontal_flip` is refused. Previews and
    `predict` need `autoencoder`, the one that the latents were made with: stabilityai/sd-vae-ft-ema, for captioned sets
    the vae of Stable Diffusion v1.5. Caption features are stored too, so the text encoder is not used: previews and
    `predict` draw under the captions of the test split, in turn, and need the shards.

    Splits: `test_shards` for testing, and the first of them for validation. Where there are none (MM-CelebA-HQ,
    UCF101), the last `num_held_out_shards` of the training shards are taken for it, and not trained on; the release
    trains on all of them, and validates on some that it trains on.

    Args:
        root: folder of the shards, *.tar; nothing is written there.
        latents: field that holds the latents; "image" encodes the pictures themselves, image.jpg or image.png, and
            captions with `text_encoder`, as for any other data set.
        condition: what the model is given: nothing, the class (cls_id.cls) or a caption.
        num_classes: classes, with the condition "class".
        num_frames: frames of a clip, with frame_feature256.npy; of longer ones, training takes a part at random.
        train_shards: pattern of the training shards' names.
        test_shards: pattern of the test shards' names.
        num_held_out_shards: training shards to test on where there are no test shards.
        index_folder: folder that keeps how many samples each shard holds.
        num_workers: worker processes; 0 reads in the main process.
        options: those of every data set.
    """

    options_that_only_locate = ("root", "index_folder")
    default_captions = ("A person with black hair.", "A person with blond hair.", "A smiling person.", "A man.")

    def __init__(
        self,
        root: str,
        latents: Latents = "img_feature256.npy",
        condition: Literal["none", "class", "caption"] = "none",
        num_classes: int = 101,
        num_frames: int = 16,
        train_shards: str = "train-*.tar",
        test_shards: str = "test-*.tar",
        num_held_out_shards: int = 1,
        index_folder: str = "data/shard-counts",
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        stored = latents != "image"
        self.has_captions = condition == "caption" and not stored
        super().__init__(num_workers=num_workers, **options)
        if stored and self.horizontal_flip:
            raise UserError(
                "data.horizontal_flip: the shards hold no latents of mirrored pictures; leave it out, or set "
                "data.latents to image to encode the pictures"
            )
        if stored and options.get("predict_captions") is not None:
            raise UserError(
                "data.predict_captions: the model sees stored caption features, and is drawn under those of the test "
                "split; leave it out, or set data.latents to image to encode captions too"
            )
        if num_held_out_shards < 1:
            raise UserError(f"data.num_held_out_shards must be at least 1, got {num_held_out_shards}")
        self.root = root
        self.latents = latents
        self.conditioned_on = condition
        self.num_classes = num_classes if condition == "class" else None
        self.num_frames = num_frames if latents == "frame_feature256.npy" else None
        self.train_shards = train_shards
        self.test_shards = test_shards
        self.num_held_out_shards = num_held_out_shards
        self.index_folder = index_folder

    @property
    def caption_dim(self) -> int | None:
        """Width of a caption token's features, None without captions."""
        return CAPTION_DIM if self._has_stored_captions else super().caption_dim

    def described(self) -> dict[str, Any]:
        """Return what decides which items a split has and what is in them."""
        return {**super().described(), "condition": self.conditioned_on}

    def prepare_data(self) -> None:
        """Count the samples in one process before the others need the counts."""
        if self.trainer is None or self.trainer.state.fn != "predict":
            assert self._counts

    def setup(self, stage: str) -> None:
        """Open the splits that the stage needs, and find out at once whether pictures can be made."""
        super().setup(stage)
        space = self.frozen_autoencoder
        if isinstance(space, StoredLatentSpace) and space.decoder is None and self._will_decode(stage):
            space.decode(torch.empty(0))

    def load_split(self, split: Split) -> ShardedPictures:
        """Open the pictures of a split, with class or captions as the condition asks for.

        Raises:
            UserError: there are no shards for it, or they have no pictures or conditions.
        """
        names = self._names(split)
        return ShardedPictures(
            self._reader(names),
            self._field(names, IMAGE_FIELDS),
            class_ids=self._field(names, (CLASS_FIELD,)) if self.conditioned_on == "class" else None,
            captions=self._field(names, (CAPTIONS_FIELD,)) if self.conditioned_on == "caption" else None,
        )

    def live_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        """Open a split as the loader reads it."""
        if self.latents != "image":
            return self.stored_samples(split)
        pictures = self.pixel_items(split)
        reader = self._reader(self._names(split))
        return ShardedPixels(reader, pictures, seed=self.seed, horizontal_flip=horizontal_flip)

    def stored_samples(self, split: Split) -> StoredSamples:
        """Open the stored latents of a split.

        Raises:
            UserError: there are no shards for it, or they have no such latents or conditions.
        """
        names = self._names(split)
        conditions: dict[str, Any] = {}
        if self.conditioned_on == "class":
            conditions = {"class_ids": self._field(names, (CLASS_FIELD,)), "num_classes": self.num_classes}
        elif self.conditioned_on == "caption":
            has_texts = all(CAPTIONS_FIELD in self._counts[name].fields for name in names)
            features = self._field(names, CAPTION_FEATURE_FIELDS)
            conditions = {"caption_features": features, "captions": CAPTIONS_FIELD if has_texts else None}
        latents = self._field(names, (self.latents,))
        samples = StoredSamples(
            self._reader(names),
            latents,
            self.latent_shape,
            **conditions,
            seed=self.seed,
            random_start=split == "train",
        )
        samples.__getitems__([(0, 0)])  # what does not fit the options is found before training starts
        return samples

    def conditions(self, sample_ids: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the batch without latents that `predict` would see for these sample ids, for previews."""
        conditions = self._conditions()
        if not isinstance(conditions, StoredConditions):
            return super().conditions(sample_ids, device)
        raw = conditions.__getitems__([(sample_id, sample_id) for sample_id in sample_ids])
        return self.encode(self.transfer_batch_to_device(raw, torch.device(device), 0), device)

    @property
    def _has_stored_captions(self) -> bool:
        return self.conditioned_on == "caption" and self.latents != "image"

    def _conditions(self) -> ConditionSamples:
        return self._stored_conditions if self._has_stored_captions else super()._conditions()

    @cached_property
    def _stored_conditions(self) -> StoredConditions:
        return StoredConditions(self.stored_samples("test"))

    @cached_property
    def _encoder(self) -> Autoencoder:
        decoder = None
        if self.latents == "image" or self.autoencoder != "identity":
            decoder = build_autoencoder(self.autoencoder, self.image_channels, self.autoencoder_subfolder)
        if self.latents == "image":
            assert decoder is not None
            return decoder
        return StoredLatentSpace(LATENT_SCALE, decoder)

    def _will_decode(self, stage: str) -> bool:
        from zigma_pl.callbacks.preview import PreviewGrid

        callbacks = getattr(self.trainer, "callbacks", [])
        previews = [callback for callback in callbacks if isinstance(callback, PreviewGrid) and callback.num_samples]
        return stage == "predict" or (stage == "fit" and bool(previews))

    @cached_property
    def _counts(self) -> dict[str, ShardCount]:
        return count_samples(Path(self.root), Path(self.index_folder))

    def _names(self, split: Split) -> list[str]:
        train, test = (
            [name for name in self._counts if fnmatch(name, pattern)]
            for pattern in (self.train_shards, self.test_shards)
        )
        if not test:
            train, test = train[: -self.num_held_out_shards], train[-self.num_held_out_shards :]
        names = {"train": train, "validation": test[:1], "test": test}[split]
        if not any(self._counts[name].num_samples for name in names):
            raise UserError(
                f"'{self.root}' has no samples for {split} in shards {self.train_shards} and {self.test_shards}: set "
                "data.train_shards, data.test_shards and data.num_held_out_shards to fit the names of the shards"
            )
        return names

    def _reader(self, names: list[str]) -> ShardReader:
        sizes = [self._counts[name].num_samples for name in names]
        return ShardReader(sizes, partial(_open_number, Path(self.root), names))

    def _field(self, names: list[str], candidates: tuple[str, ...]) -> str:
        """Return the first of the fields that every sample of these shards has."""
        for field in candidates:
            if all(field in self._counts[name].fields for name in names):
                return field
        name = next(name for name in names if not set(candidates) & set(self._counts[name].fields))
        latents = ", ".join(field for field in get_args(Latents) if field in self._counts[name].fields)
        raise UserError(
            f"{self.root}/{name}: not every sample has a field {' or '.join(candidates)}; all have "
            f"{', '.join(self._counts[name].fields)}: choose data.condition, and data.latents from image, {latents}"
        )


def _open_number(root: Path, names: Sequence[str], number: int, index: ShardIndex | None) -> TarShard:
    return open_shard(root / names[number], index)
