"""Building a data module from parsed options, and checking which files it needs are missing."""

from collections.abc import Callable

from jsonargparse import ArgumentParser, Namespace

from zigma_pl.core.errors import UserError, expected_error
from zigma_pl.data.base import ImageDataModule

WITHOUT_WEIGHTS = {"autoencoder": "identity", "text_encoder": "hashing", "text_encoder_path": None}


def make_data_module(options: Namespace) -> ImageDataModule:
    """Build the data module from parsed options (class_path and init_args) without loading data or weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    try:
        data: ImageDataModule = parser.instantiate(Namespace(data=options)).data
    except ValueError as error:
        raise expected_error(error) or error from None
    return data


def missing_parts(options: Namespace) -> list[str]:
    """Return an error message for each part that training cannot read: data set, autoencoder, text encoder.

    Raises:
        UserError: the options themselves are invalid.
    """
    without_weights = with_options(options, WITHOUT_WEIGHTS)
    make_data_module(without_weights)
    kept_encoder = {name: value for name, value in WITHOUT_WEIGHTS.items() if name != "autoencoder"}
    # A cache is compared with the encoders, so it cannot be opened without them.
    whole = options if options.init_args.get("cache") is not None else without_weights
    attempts: tuple[Callable[[], object], ...] = (
        lambda: make_data_module(whole).setup("fit"),
        lambda: make_data_module(with_options(options, kept_encoder)).latent_shape,
        lambda: make_data_module(with_options(options, {"autoencoder": "identity"})),
    )
    errors = [_error_of(attempt) for attempt in attempts]
    return list(dict.fromkeys(error for error in errors if error is not None))


def _error_of(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except UserError as error:
        return str(error)
    return None


def with_options(options: Namespace, values: dict[str, str | None]) -> Namespace:
    """Return the options of a data module with other values, of those that it has."""
    changed = options.clone()
    for name, value in values.items():
        if name in changed.init_args:
            changed.init_args[name] = value
    return changed
