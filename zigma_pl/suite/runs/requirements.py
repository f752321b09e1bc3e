"""Missing files of runs: data sets, autoencoders, text encoders and networks for scoring, all listed at once."""

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from zigma_pl.core.class_paths import public_path
from zigma_pl.core.errors import UserError
from zigma_pl.core.weight_files import DEFAULT_ROOT, WEIGHTS, check
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import make_data_module
from zigma_pl.evaluation.metrics.extractors import EXTRACTORS
from zigma_pl.evaluation.metrics.extractors.clip import CLIPImage
from zigma_pl.evaluation.scores import CLIP_SCORE, SCORES
from zigma_pl.suite.runs.composed import fingerprint, option
from zigma_pl.suite.runs.plan import Run
from zigma_pl.training.callbacks.scorer import Scorer

_WRONG_OPTIONS = (UserError, ArgumentError)
_WITHOUT_WEIGHTS = {"autoencoder": "identity", "text_encoder": "hashing", "text_encoder_path": None}


def missing(runs: Sequence[Run]) -> list[str]:
    """Return a line for each missing file or folder, with the runs that need it.

    Nothing is computed or downloaded, but synthetic data sets are generated.
    """
    lines_of: dict[str, list[str]] = {}
    needed_by: dict[str, list[str]] = {}
    for run in runs:
        needs = {"data": run.config["data"], "scoring": option(run.config, "scorer", {})}
        key = fingerprint(needs)
        if key not in lines_of:
            lines_of[key] = list(_missing(**needs))
        for line in lines_of[key]:
            needed_by.setdefault(line, []).append(run.name)
    return [f"{line} (for {_some(names)})" for line, names in needed_by.items()]


def _missing(data: dict[str, Any], scoring: dict[str, Any]) -> Iterator[str]:
    options = data.get("init_args") or {}
    try:
        data_class = _class_of(data["class_path"])
    except (ImportError, AttributeError, ValueError) as error:
        yield f"data.class_path {data['class_path']}: {error}"
        return
    has_captions = _has_captions(data_class, options)
    folders = _encoder_folders(has_captions, options)
    names = [name for name in WEIGHTS if str(DEFAULT_ROOT / name) in folders.values()]
    if has_captions and options.get("text_encoder") == "minilm" and "text_encoder_path" not in folders:
        names.append("minilm")
    for name, folder in folders.items():
        if Path(folder).name not in names and not Path(folder).is_dir():
            yield f"data.{name}: folder '{folder}' does not exist"
    try:
        scorer = _scorer(scoring).options
        names += _networks(scorer.scores_of(_open(data_class, options)))
        for extractor in scorer.extractors.values():
            extractor.to("cpu")  # loads its weights
    except _WRONG_OPTIONS as error:
        yield " ".join(str(error).split())
        names += _networks(scoring.get("metrics") or ())
    yield from _missing_files(names)


def _class_of(class_path: str) -> type[ImageDataModule]:
    module_name, _, class_name = class_path.rpartition(".")
    data_class: type[ImageDataModule] = getattr(import_module(module_name), class_name)
    return data_class


def _has_captions(data_class: type[ImageDataModule], options: dict[str, Any]) -> bool:
    """Return whether the data set has captions with these options; invalid options are reported when it is opened."""
    try:
        return _data_module(data_class, _without_weights(options)).has_captions
    except _WRONG_OPTIONS:
        return False


def _data_module(data_class: type[ImageDataModule], options: dict[str, Any]) -> ImageDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    parsed = parser.parse_object({"data": {"class_path": public_path(data_class), "init_args": options}})
    return make_data_module(parsed.data)


def _scorer(options: dict[str, Any]) -> Scorer:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Scorer, "scorer")
    scorer: Scorer = parser.instantiate(parser.parse_object({"scorer": options})).scorer
    return scorer


def _without_weights(options: dict[str, Any]) -> dict[str, Any]:
    return options | {name: value for name, value in _WITHOUT_WEIGHTS.items() if name in options}


def _encoder_folders(has_captions: bool, options: dict[str, Any]) -> dict[str, str]:
    """Return the folders of the encoders in use, by option."""
    used = ["autoencoder"]
    if has_captions and options.get("text_encoder", "hashing") != "hashing":
        used.append("text_encoder_path")
    named = {name: options.get(name) for name in used}
    return {name: value for name, value in named.items() if isinstance(value, str) and value != "identity"}


def _open(data_class: type[ImageDataModule], options: dict[str, Any]) -> ImageDataModule:
    """Open the splits that training and scoring read, and return the data module.

    Encoders are replaced by those that need no weights, unless a prepared set has to be compared with its encoders.
    """
    if options.get("cache") is None:
        options = _without_weights(options)
    datamodule = _data_module(data_class, options)
    for stage in ("fit", "test"):
        datamodule.setup(stage)
    return datamodule


def _networks(scores: Iterable[str]) -> list[str]:
    """Return the names in WEIGHTS that these scores need."""
    extractors = [SCORES[name].features.extractor for name in scores if name in SCORES]
    return [CLIPImage.weights_name if name == CLIP_SCORE else EXTRACTORS[name].weights_name for name in extractors]


def _missing_files(names: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        remedy = WEIGHTS[name].install or f"python -m zigma_pl weights fetch {name}"
        bad = [finding for finding in check(name) if not finding.status.usable]
        if bad:
            files = ", ".join(f"{finding.path.name} is {finding.status.value.lower()}" for finding in bad)
            yield f"{bad[0].path.parent}: {files}: {remedy}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
