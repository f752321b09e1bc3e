"""Missing files of runs: data sets, autoencoders, text encoders and networks for scoring, all listed at once."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from zigma_pl.core.errors import UserError, expected_error
from zigma_pl.core.records import one_line
from zigma_pl.core.weight_files import DEFAULT_ROOT, WEIGHTS, check
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import WITHOUT_WEIGHTS, make_data_module, with_options
from zigma_pl.evaluation.metrics.extractors import EXTRACTORS
from zigma_pl.evaluation.metrics.extractors.clip import CLIPImage
from zigma_pl.evaluation.scores import CLIP_SCORE, SCORES
from zigma_pl.evaluation.scoring import ScoringOptions
from zigma_pl.suite.runs.composed import compose, fingerprint, option
from zigma_pl.suite.runs.plan import Run
from zigma_pl.training.callbacks.scorer import Scorer


def missing(runs: Sequence[Run]) -> list[str]:
    """Return a line for each missing file or folder, with the runs that need it.

    Nothing is computed or downloaded, but synthetic data sets are generated.
    """
    lines_of: dict[str, list[str]] = {}
    needed_by: dict[str, list[str]] = {}
    for run in runs:
        key = fingerprint({"data": run.config["data"], "scorer": option(run.config, "scorer", {})})
        if key not in lines_of:
            lines_of[key] = list(_missing(run.files))
        for line in lines_of[key]:
            needed_by.setdefault(line, []).append(run.name)
    return [f"{line} (for {_some(names)})" for line, names in needed_by.items()]


def _missing(files: Sequence[Path]) -> Iterator[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=False)
    parser.add_class_arguments(Scorer, "scorer")
    try:
        options = _parsed(parser, files)
    except ArgumentError as error:
        yield one_line(str(error))
        return
    has_captions = _has_captions(options.data)
    folders = _encoder_folders(has_captions, options.data.init_args)
    names = [name for name in WEIGHTS if str(DEFAULT_ROOT / name) in folders.values()]
    if has_captions and options.data.init_args.get("text_encoder") == "minilm" and "text_encoder_path" not in folders:
        names.append("minilm")
    for name, folder in folders.items():
        if Path(folder).name not in names and not Path(folder).is_dir():
            yield f"data.{name}: folder '{folder}' does not exist"
    try:
        scoring = _scoring(parser, options)
        names += _networks(scoring.scores_of(_open(options.data)))
        for extractor in scoring.extractors.values():
            extractor.to("cpu")  # loads its weights
    except UserError as error:
        yield one_line(str(error))
        names += _networks(options.scorer.metrics or ())
    yield from _missing_files(names)


def _parsed(parser: ArgumentParser, files: Sequence[Path]) -> Namespace:
    """Return the options of data and scorer in files, later ones over earlier ones, as the command line merges them."""
    options = None
    for path in files:
        given = {name: value for name, value in compose([path]).items() if name in ("data", "scorer")}
        options = parser.parse_object(given, namespace=options)
    assert options is not None
    return options


def _scoring(parser: ArgumentParser, options: Namespace) -> ScoringOptions:
    try:
        scorer: Scorer = parser.instantiate(Namespace(scorer=options.scorer)).scorer
    except ValueError as error:
        raise expected_error(error) or error from None
    return scorer.options


def _has_captions(data: Namespace) -> bool:
    """Return whether the data set has captions with these options; invalid options are reported when it is opened."""
    try:
        return make_data_module(with_options(data, WITHOUT_WEIGHTS)).has_captions
    except UserError:
        return False


def _encoder_folders(has_captions: bool, options: Namespace) -> dict[str, str]:
    """Return the folders of the encoders in use, by option."""
    used = ["autoencoder"]
    if has_captions and options.get("text_encoder", "hashing") != "hashing":
        used.append("text_encoder_path")
    named = {name: options.get(name) for name in used}
    return {name: value for name, value in named.items() if isinstance(value, str) and value != "identity"}


def _open(data: Namespace) -> ImageDataModule:
    """Open the splits that training and scoring read, and return the data module.

    Encoders are replaced by those that need no weights, unless a prepared set has to be compared with its encoders.
    """
    if data.init_args.get("cache") is None:
        data = with_options(data, WITHOUT_WEIGHTS)
    datamodule = make_data_module(data)
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
