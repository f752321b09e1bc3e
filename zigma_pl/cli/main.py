"""`python -m zigma_pl COMMAND`: the command table, `--help` without waiting for torch, and one-line errors."""

import difflib
import errno
import os
import select
import sys
from importlib import import_module

from zigma_pl.core.errors import BackendUnavailable, expected_error
from zigma_pl.core.signals import end_with_parent, ended_by_signals

CLOSED_OUTPUT_STATUS = 141  # as of a program that SIGPIPE ends

# command -> (module in zigma_pl.cli with main(argv) -> exit status, one line of help)
COMMANDS = {
    "fit": ("lightning_cli", "train a model: --config experiments/ROW.yaml"),
    "validate": ("lightning_cli", "fixed validation loss of a checkpoint: --config ROW --ckpt_path CKPT"),
    "test": (
        "lightning_cli",
        "score a checkpoint: loss, samples, results/ROW.json: --config ROW --ckpt_path CKPT",
    ),
    "predict": ("lightning_cli", "sample images from a checkpoint (no data set needed)"),
    "sample": ("commands.sample", "draw pictures from an exported model: --model FOLDER --prompt TEXT"),
    "prepare": ("commands.prepare", "encode a data set once: latents and caption features, to train from"),
    "show-batch": (
        "commands.show_batch",
        "draw a batch as the model gets it: --config ROW --out batch.png",
    ),
    "demo": ("commands.demo", "train on handwritten digits, sample 500, say how many are recognised"),
    "paths": ("commands.paths", "draw every scan order of a grid"),
    "bench": ("commands.bench", "check, then time: scan, forward pass, training step, number of orders"),
    "doctor": (
        "commands.doctor",
        "versions, devices, which scan backends can run here and whether they are right",
    ),
    "ablations": (
        "commands.ablations",
        "train and score every row of the tables, go on where it was interrupted",
    ),
    "tables": ("commands.tables", "experiments/README.md and docs/results.md from the result records"),
    "report": ("commands.report", "one static HTML page: tables, curves, samples, scan paths"),
    "weights": ("commands.weights", "files of frozen networks: list, check, fetch"),
    "export": (
        "commands.export",
        "checkpoint -> safetensors + config.json: --ckpt_path CKPT --out FOLDER",
    ),
    "import-zigma": (
        "commands.import_zigma",
        "convert an official ZigMa checkpoint to safetensors + config.json",
    ),
}


def help_text() -> str:
    """Return the text of `python -m zigma_pl --help`."""
    lines = [f"  {name:<14}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m zigma_pl COMMAND [options]",
            "",
            "Zigzag-scanned state-space diffusion models (ZigMa) on PyTorch Lightning.",
            "",
            "commands:",
            *lines,
            "",
            "Options of a command: python -m zigma_pl COMMAND --help",
            "First steps:          python -m zigma_pl demo",
        ]
    )


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; of an error from a data loader's worker, its own last line."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(message.split())


def _output_is_closed() -> bool:
    """Whether nobody reads our output any more, as after `| head -1`; what is still to be written is dropped then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    is_closed = any(events & select.POLLERR for _, events in output.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 done, 1 failed with a message, 2 wrong usage, 75 preempted and to be run again, 128 + n ended by signal n: 130 by
    Ctrl-C, 129 by SIGHUP, 143 by SIGTERM, 141 where nobody reads the output.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_parent()
    with ended_by_signals():
        return run(argv)


def run(argv: list[str] | None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    command, *options = argv
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
        print(f"error: unknown command {command!r}: {hint}", file=sys.stderr)
        return 2
    module_name, _ = COMMANDS[command]
    arguments = argv if module_name == "lightning_cli" else options
    try:
        try:
            return import_module(f"zigma_pl.cli.{module_name}").main(arguments)
        finally:
            sys.stdout.flush()  # here, where it is known what to do if nobody reads it
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return CLOSED_OUTPUT_STATUS
    except (ValueError, BackendUnavailable) as error:
        cause = expected_error(error)
        if cause is None:
            raise
        print(f"error: {one_line(cause)}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            print(f"error: the disk is full ({one_line(error)}): free some space and run again", file=sys.stderr)
            return 1
        if error.filename is None:
            raise
        print(
            f"error: {error.filename}: {error.strerror}: choose another path, or correct this one and its permissions",
            file=sys.stderr,
        )
        return 1
