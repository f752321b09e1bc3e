"""The contents of config.json in the folder of an exported model."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from zigma_pl.core.ranges import LARGEST_SEED
from zigma_pl.core.records import Part, Record, Sha256
from zigma_pl.encoders.text import TextEncoderName

REMEDY = "export the model again"


class Description(Part):
    """Import path of a class and options of its constructor; see `zigma_pl.core.class_paths`."""

    class_path: str = Field(max_length=500)
    init_args: dict[str, Any] = Field(default_factory=dict)


class Sparse(Part):
    """Part of a file that is written without the fields that are None."""

    @model_serializer(mode="wrap")
    def _present(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class DataDescription(Sparse):
    """The data module that a model was trained with: its class and its frozen encoders."""

    model_config = ConfigDict(extra="ignore")

    class_path: str | None = None
    image_size_px: int | None = None
    autoencoder: str | Description | None = None
    autoencoder_subfolder: str | None = None
    text_encoder: TextEncoderName | Description | None = None
    text_encoder_path: str | None = None
    max_caption_tokens: int | None = Field(default=None, ge=1, le=65_536)


class ModelConfig(Sparse, Record):
    """The contents of config.json.

    Attributes:
        backbone: the network.
        objective, sampler, guidance, seed: needed for sampling; all are None if only a backbone was saved.
        class_names: name of each class, by index.
        training: step and kind of weights that were exported.
        data: the data module of the training.
        weights_sha256: hash of model.safetensors.
    """

    model_config = ConfigDict(extra="allow")  # users may add fields, which are ignored
    newest_version: ClassVar[int] = 2
    remedy: ClassVar[str] = REMEDY

    format_version: int = Field(default=2, ge=1)
    backbone: Description
    objective: Description | None = None
    sampler: Description | None = None
    guidance: Description | None = None
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    class_names: list[Annotated[str, Field(max_length=1000)]] | None = None
    training: dict[str, Any] | None = None
    data: DataDescription | None = None
    weights_sha256: Sha256 | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, data: Any) -> Any:
        """Convert format 1, which named classes of this package without their module, to the current format."""
        if not isinstance(data, dict) or data.get("format_version", 2) != 1:
            return data
        kept = {name: value for name, value in data.items() if name != "config"}
        kept["backbone"] = {"class_path": data.get("backbone"), "init_args": data.get("config")}
        for name, class_path in (("objective", "Objective"), ("guidance", "Guidance")):
            if data.get(name) is not None:
                kept[name] = {"class_path": class_path, "init_args": data[name]}
        if isinstance(data.get("sampler"), dict):
            names = {"class": "class_path", "options": "init_args"}
            kept["sampler"] = {names.get(name, name): value for name, value in data["sampler"].items()}
        if isinstance(data.get("data"), dict):
            kept["data"] = {{"class": "class_path"}.get(name, name): value for name, value in data["data"].items()}
        return kept | {"format_version": 2}

    @model_validator(mode="after")
    def _samples_or_not(self) -> Self:
        sections = ("objective", "sampler", "guidance", "seed")
        missing = [name for name in sections if getattr(self, name) is None]
        if missing and len(missing) < len(sections):
            raise ValueError(f"missing {', '.join(missing)}")
        return self
