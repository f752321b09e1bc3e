"""`python -m zigma_pl prepare NAME`: encode a data set in advance, to a folder that training reads instead."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from tqdm import tqdm

from zigma_pl.cli.parsing import quieten
from zigma_pl.core.class_paths import build_described, find_class, packages_named
from zigma_pl.core.errors import UserError
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.cache.manifest import (
    MANIFEST_NAME,
    MAX_SHARD_SIZE,
    KeptDtype,
    Manifest,
    ShardLayout,
    num_samples,
    read_manifest,
)
from zigma_pl.data.preparation.check import check_content, check_entries, check_files
from zigma_pl.data.preparation.run import Preparation, prepare
from zigma_pl.encoders.autoencoder import Autoencoder
from zigma_pl.encoders.text import TextEncoder

DATA_SETS = {
    "faceshq": "zigma_pl.data.sources.faceshq.FacesHQ",
    "mm_celeba_hq": "zigma_pl.data.sources.mm_celeba_hq.MMCelebAHQ",
    "coco": "zigma_pl.data.sources.coco.COCO",
    "ucf101": "zigma_pl.data.sources.ucf101.UCF101",
    "folder": "zigma_pl.data.sources.folder.ImageFolder",
    "digits": "zigma_pl.data.sources.digits.Digits",
}
# Options of a data module that concern training or sampling, or have another meaning here.
NOT_OFFERED = {
    "batch_size",
    "num_workers",
    "seed",
    "horizontal_flip",
    "cache",
    "keep_fetched_in",
    "predict_captions",
    "num_predict_samples",
}
ALL_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ShardSize = restricted_number_type("ShardSize", int, [(">=", 1), ("<=", MAX_SHARD_SIZE)])
Accelerator = Literal["auto", "cpu", "gpu"]
OnBadFile = Literal["stop", "skip"]
OWN_OPTIONS = (
    "out",
    "splits",
    "dtype",
    "shard_size",
    "batch_size",
    "num_workers",
    "devices",
    "accelerator",
    "on_bad_file",
    "check",
    "overwrite",
)
HELP_OF_DTYPE = "dtype of latent moments and caption features; float16 halves the size and rounds to 1 part in 2,000"
ENTRIES_TO_CHECK = 3  # per split
SKIPPED_TO_SHOW = 10
DESCRIPTION = (
    "Decode and encode a data set once, and write the result to a folder that `fit --data.cache FOLDER` reads instead "
    "of the data set."
)
USAGE = f"usage: python -m zigma_pl prepare {{{','.join(DATA_SETS)},my_package.MyData}} --root DIR --out DIR [options]"


class Parser(ArgumentParser):
    """Reports an error in the options on one line, without the usage text."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message on one line and exit with status 2."""
        print(f"error: {' '.join(message.split())} (options: {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> int:
    """Prepare a data set, or check a prepared one; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{DESCRIPTION}\n\nThe options of a data set: python -m zigma_pl prepare mm_celeba_hq --help")
        return 0
    name = argv[0] if "." in argv[0] else argv[0].replace("-", "_")
    if name not in DATA_SETS and "." not in name:
        known = ", ".join(DATA_SETS)
        print(
            f"error: prepare: unknown data set {argv[0]!r}; choose {known}, or the import path of your own data module",
            file=sys.stderr,
        )
        return 2
    quieten()
    path = DATA_SETS.get(name, name)  # naming a package on the command line allows it
    data_class = find_class(path, ImageDataModule, (path.split(".")[0],))  # type: ignore[type-abstract]
    parser = build_parser(name, data_class)
    options = vars(parser.parse_args(argv[1:]))
    with options_as_spelled_here(set(options)):
        return _run(data_class, options)


@contextmanager
def options_as_spelled_here(names: set[str]) -> Iterator[None]:
    """Replace the names of options in configs, such as data.root, by those of this command, --root, in errors."""
    try:
        yield
    except UserError as error:
        here = re.sub(r"\bdata\.(\w+)", lambda match: f"--{match[1]}" if match[1] in names else match[0], str(error))
        raise UserError(here) from error


def _run(data_class: type[ImageDataModule], options: dict[str, Any]) -> int:
    own = {option: options.pop(option) for option in OWN_OPTIONS}
    for option, base in (("autoencoder", Autoencoder), ("text_encoder", TextEncoder)):
        if isinstance(options.get(option), Namespace):
            given = options[option].as_dict()
            options[option] = build_described(given, base, tuple(packages_named(given)))  # type: ignore[type-abstract]
    job = Preparation(
        data_class,
        options,
        Path(own["out"]),
        ShardLayout(dtype=own["dtype"], shard_size=own["shard_size"]),
        own["batch_size"],
        own["num_workers"],
        own["on_bad_file"] == "skip",
    )
    devices = choose_devices(own["accelerator"], own["devices"])
    if own["check"]:
        check(job, own["splits"], devices[0])
    else:
        run(job, own["splits"] or list(ALL_SPLITS), devices, overwrite=own["overwrite"])
    return 0


def build_parser(name: str, data_class: type[ImageDataModule]) -> Parser:
    """Return the parser of one data set: options of this command, and those of the data module for the result."""
    parser = Parser(prog=f"python -m zigma_pl prepare {name}", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=str, required=True, help="folder to write, for --data.cache in training")
    add("--splits", nargs="+", choices=ALL_SPLITS, help="splits to prepare; all if not given")
    add("--dtype", type=KeptDtype, default="float32", help=HELP_OF_DTYPE)
    add("--shard_size", type=ShardSize, default=512, help="images or clips per shard")
    add("--batch_size", type=PositiveInt, default=16, help="images or clips encoded at a time")
    add("--num_workers", type=NonNegativeInt, default=2, help="decoding processes per device; 0 for none")
    add("--devices", type=PositiveInt, default=1, help="number of GPUs, or of processes on the CPU")
    add("--accelerator", type=Accelerator, default="auto", help="where the encoders run; auto: a GPU if available")
    add("--on_bad_file", type=OnBadFile, default="stop", help="skip: leave out unreadable files and list them")
    add(
        "--check",
        action="store_true",
        help="compare the files in --out with their hashes, and some entries with the data set",
    )
    add("--overwrite", action="store_true", help="replace an earlier result in --out")
    parser.add_class_arguments(data_class, skip=NOT_OFFERED)
    return parser


def choose_devices(accelerator: Accelerator, count: int) -> list[torch.device]:
    """Return the devices of the encoders, one for each process.

    Raises:
        UserError: there are fewer GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and num_gpus == 0):
        return [torch.device("cpu")] * count
    if count > num_gpus:
        raise UserError(f"--devices {count}: this machine has {num_gpus} CUDA GPUs: use fewer, or --accelerator cpu")
    return [torch.device("cuda", index) for index in range(count)]


def run(job: Preparation, splits: list[Split], devices: list[torch.device], *, overwrite: bool) -> None:
    """Prepare with a progress bar, and print a summary."""
    with tqdm(unit=" samples", desc="preparing", smoothing=0.1) as bar:

        def report(num_done: int, num_items: int) -> None:
            if bar.total is None:
                bar.reset(num_items)
                bar.initial = num_done
            bar.update(num_done - bar.n)

        manifest = prepare(job, splits, devices, report, overwrite=overwrite)
    print(_summary(job.folder, manifest))


def _summary(folder: Path, manifest: Manifest) -> str:
    counts = ", ".join(f"{num_samples(shards):,} {split}" for split, shards in manifest.splits.items())
    size = sum(file.num_bytes for _, shard in manifest.shards for file in shard.files.values())
    lines = [f"prepared {counts} samples, {size / 1e6:,.1f} MB"]
    skipped = manifest.skipped
    if skipped:
        lines.append(f"skipped {len(skipped)} unreadable files (the manifest lists all of them):")
        lines += [f"  {entry.reason}" for entry in skipped[:SKIPPED_TO_SHOW]]
    lines += [f"manifest: {folder / MANIFEST_NAME}", f"train with: --data.cache {folder}"]
    return "\n".join(lines)


def check(job: Preparation, splits: list[Split] | None, device: torch.device) -> None:
    """Check a prepared set, and print what was compared.

    Raises:
        UserError: something differs.
    """
    manifest = read_manifest(job.folder)
    sizes = [file.num_bytes for _, shard in manifest.shards for file in shard.files.values()]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="hashing") as bar:
        for num_bytes in check_files(job.folder, manifest):
            bar.update(num_bytes)
    print(f"{len(sizes)} files: sizes and hashes match the manifest")
    data_module = job.data_module()
    check_content(manifest, data_module, job.folder)
    for split in splits or cast(list[Split], list(manifest.splits)):
        difference = check_entries(job.folder, manifest, split, data_module, device, ENTRIES_TO_CHECK)
        print(
            f"{split}: {num_samples(manifest.splits[split]):,} samples, re-encoded entries differ by {difference:.1e}"
        )
