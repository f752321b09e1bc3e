"""Generating the samples that are missing in a store, distributed over all processes.

On a CPU, the image of a sample id is the same byte for byte, whatever the number of processes and interruptions.
Rounding in matrix products depends on the number of rows and threads, so sample ids are always processed in the same
full batches, with one thread per process. On a GPU the batches are the same too, but libraries may choose other kernels
on another GPU model or in another version. Images then differ by rounding, as they do between CPU and GPU, which have
separate stores.

Axes: B batch, F frames.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from zigma_pl.core.batch import Batch
from zigma_pl.core.class_paths import check_recordable, class_name, summary
from zigma_pl.core.errors import UserError
from zigma_pl.core.grid import to_uint8
from zigma_pl.core.processes import rank, wait_for_all, world_size
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.picture_files import evenly_spaced
from zigma_pl.encoders.weights import hash_of_weights
from zigma_pl.evaluation.held_out import NUM_PROBED
from zigma_pl.evaluation.store import Chunk, SampleStore
from zigma_pl.interpolant.objective import Objective
from zigma_pl.interpolant.samplers import Guidance, Sampler
from zigma_pl.models.backbones.base import Backbone

CPU_GROUP_SIZE = 16

_SAMPLES_NAMED = 5  # samples listed in an error message


class Sampled(Protocol):
    """A batch of generated samples."""

    @property
    def latents(self) -> Tensor:
        """(B, C, H, W), for clips (B, F, C, H, W)."""

    @property
    def sample_ids(self) -> Tensor:
        """(B,) int64."""

    @property
    def num_network_calls(self) -> int:
        """Number of network calls for the batch."""


class SamplingModel(Protocol):
    """A model that can be scored, such as a `GenerativeModule`."""

    @property
    def backbone(self) -> Backbone:
        """The network."""

    @property
    def objective(self) -> Objective:
        """The training objective."""

    @property
    def sampler(self) -> Sampler:
        """The sampler."""

    @property
    def guidance(self) -> Guidance:
        """Classifier-free guidance."""

    @property
    def seed(self) -> int:
        """Seed of the noise."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    def sample(self, batch: Batch) -> Sampled:
        """Generate one sample for each id of the batch, with its conditions."""


@dataclass(frozen=True)
class Precision:
    """Precision of sampling.

    name: Lightning's name, for the record.
    context: returns a context manager for sampling, such as `torch.autocast`.
    """

    name: str = "32-true"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def describe_sampling(
    module: SamplingModel, datamodule: ImageDataModule, split: Split, precision: str
) -> dict[str, Any]:
    """Return, as plain values, everything that samples depend on, except the weights of the model itself."""
    description = {
        **describe_model(module, datamodule, precision),
        "sampler": _describe_sampler(module.sampler, module.objective),
        "guidance": _describe_guidance(module.guidance),
        "autoencoder": datamodule.frozen_autoencoder.fingerprint(),
        "conditions": _describe_conditions(module, datamodule, split),
    }
    weak = getattr(module, "weak_backbone", None)  # of autoguidance
    if weak is not None:
        description["weak_model"] = {**summary(weak), "weights_sha256": hash_of_weights(weak)}
    check_recordable(description, "scoring")  # the description must identify the model
    return description


def describe_model(module: SamplingModel, datamodule: ImageDataModule, precision: str) -> dict[str, Any]:
    """Return, as plain values, the model and how it computes; needs no weights of encoders."""
    description = {
        "backbone": summary(module.backbone),
        "objective": summary(module.objective, Objective),
        "seed": module.seed,
        "precision": precision,
        "device": module.device.type,
        "image_size_px": datamodule.image_size_px,
    }
    check_recordable(description, "scoring")
    return description


def _describe_sampler(sampler: Sampler, objective: Objective) -> dict[str, Any]:
    described = summary(sampler)
    if "time_shift" in described and described["time_shift"] is None:
        described["time_shift"] = objective.time_shift
    return described


def _describe_guidance(guidance: Guidance) -> dict[str, Any]:
    return {name: value for name, value in summary(guidance, Guidance).items() if value is not None}


def _describe_conditions(module: SamplingModel, datamodule: ImageDataModule, split: Split) -> dict[str, Any] | None:
    if not is_conditional(module):
        return None
    encoder, num_items = datamodule.text_encoder, len(datamodule.samples(split))
    some = datamodule.held_out_conditions(split, evenly_spaced(num_items, NUM_PROBED))
    classes = None if some.class_ids is None else some.class_ids.tolist()
    return {
        "of": f"items 0, 1, ... of the {split} split",
        "dataset": class_name(type(datamodule)),
        "items": datamodule.described(),
        "num_items": num_items,
        "some_of_them_sha256": hashlib.sha256(repr((some.captions, classes)).encode()).hexdigest(),
        "seed": datamodule.seed,
        "text_encoder": None if encoder is None else encoder.fingerprint(),
    }


def is_conditional(module: SamplingModel) -> bool:
    """Whether the backbone has any conditioner."""
    return len(module.backbone.conditioners) > 0


def sample_missing(
    module: SamplingModel,
    datamodule: ImageDataModule,
    split: Split,
    store: SampleStore,
    num_samples: int,
    *,
    precision: Precision,
    shows_progress: bool,
    on_sampled: Callable[[int, int], None] | None = None,
) -> None:
    """Generate the missing chunks of this process; returns when all processes are done.

    Args:
        module: the model.
        datamodule: provides conditions and decodes latents.
        split: split of the conditions.
        store: store of the samples.
        num_samples: total number over all processes.
        precision: precision of sampling.
        shows_progress: whether this process shows a progress bar.
        on_sampled: called after each chunk with the number of samples done and the total number.

    Raises:
        UserError: sampling failed: values are not finite, or an image has a single colour.
    """
    if rank() == 0:
        store.open()
    wait_for_all()
    own = store.chunk_indices(num_samples, rank(), world_size())
    missing = [index for index in own if not store.has(index)]
    size = store.chunk_size * world_size()  # assumes that all processes are about equally far
    done, total = (len(own) - len(missing)) * size, len(own) * size
    with (
        one_thread_on_a_cpu(module.device),
        tqdm(total=total, initial=done, unit="images", desc="sampling", disable=not shows_progress) as bar,
    ):
        for index in missing:
            store.write(index, _sample(module, datamodule, split, store.sample_ids(index), precision))
            bar.update(size)
            done += size
            if on_sampled is not None:
                on_sampled(done, total)
    wait_for_all()


@contextmanager
def one_thread_on_a_cpu(device: torch.device) -> Iterator[None]:
    """Use one thread if the model is on a CPU; use several processes for several cores."""
    num_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _sample(
    module: SamplingModel, datamodule: ImageDataModule, split: Split, sample_ids: Sequence[int], precision: Precision
) -> Chunk:
    batch = _batch(module, datamodule, split, sample_ids)
    with precision.context():
        sampled = module.sample(batch)
    latents, ids = sampled.latents, sampled.sample_ids
    _require_finite(latents, ids, "use --trainer.precision 32-true, or an earlier checkpoint if training diverged")
    decoded = datamodule.decode(latents)
    _require_finite(decoded, ids, "their latents are finite, so check the scale and weights of the autoencoder")
    pictures = to_uint8(decoded).movedim(-1, -3).contiguous()
    flat = pictures.flatten(1)
    constant = flat.amin(1) == flat.amax(1)
    if constant.any():
        raise UserError(
            f"sampling failed, as samples {_named(ids[constant])} have a single colour: check the previews of the "
            "training run, and use a checkpoint with more training, or from before it diverged"
        )
    return Chunk(pictures, ids, sampled.num_network_calls)


def _require_finite(values: Tensor, ids: Tensor, remedy: str) -> None:
    finite = values.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        raise UserError(f"sampling failed, as samples {_named(ids[~finite])} are not finite: {remedy}")


def _batch(module: SamplingModel, datamodule: ImageDataModule, split: Split, sample_ids: Sequence[int]) -> Batch:
    if not is_conditional(module):
        return Batch(None, torch.tensor(sample_ids))
    raw = datamodule.held_out_conditions(split, sample_ids)
    moved: Any = datamodule.transfer_batch_to_device(raw, module.device, 0)
    return Batch(None, raw.sample_ids, datamodule.encode_conditions(moved, module.device))


def _named(sample_ids: Tensor) -> str:
    named = ", ".join(map(str, sample_ids[:_SAMPLES_NAMED].tolist()))
    return named + (f" and {len(sample_ids) - _SAMPLES_NAMED} more" if len(sample_ids) > _SAMPLES_NAMED else "")
