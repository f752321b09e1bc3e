"""`python -m zigma_pl COMMAND`: the command table, a `--help` that does not import torch, and one-line errors."""

import difflib
import errno
import os
import re
import select
import sys
from importlib import import_module

from zigma_pl.core.errors import BackendUnavailable, expected_error
from zigma_pl.core.signals import end_with_parent, ended_by_signals

CLOSED_OUTPUT_STATUS = 141  # 128 + SIGPIPE

# command -> (module in zigma_pl.cli with main(argv) -> exit status, one line of help)
COMMANDS = {
    "fit": ("lightning_cli", "train a model: --config FILE.yaml"),
    "validate": ("lightning_cli", "compute the validation loss of a checkpoint: --config FILE.yaml --ckpt_path CKPT"),
    "test": ("lightning_cli", "score a checkpoint, write results/NAME.json: --config FILE.yaml --ckpt_path CKPT"),
    "predict": ("lightning_cli", "sample from a checkpoint, without the data set: --config FILE.yaml --ckpt_path CKPT"),
    "sample": ("commands.sample", "generate images from an exported model: --model FOLDER --prompt TEXT"),
    "prepare": ("commands.prepare", "encode a data set in advance: latents and caption features to train on"),
    "show-batch": ("commands.show_batch", "plot a batch as the model gets it: --config FILE.yaml --out batch.png"),
    "demo": ("commands.demo", "train on handwritten digits, sample 500 and classify them"),
    "paths": ("commands.paths", "plot the scan orders of a grid"),
    "orders": ("commands.orders", "compare sets of scan orders before training"),
    "bench": ("commands.bench", "check, then time: scan, forward pass, training step, number of orders"),
    "doctor": ("commands.doctor", "list versions, devices and scan backends, and check the backends' results"),
    "ablations": (
        "commands.ablations",
        "train and score all experiments; finished ones are skipped, interrupted ones resumed",
    ),
    "tables": ("commands.tables", "write experiments/README.md and docs/results.md from the result records"),
    "report": ("commands.report", "write an HTML page: tables, curves, samples, scan orders"),
    "weights": ("commands.weights", "list, check or download the weights of frozen networks"),
    "average": (
        "commands.average",
        "reconstruct an average of the weights of any width: RUN_FOLDER --sigma_rel WIDTH --out CKPT",
    ),
    "export": ("commands.export", "write a checkpoint as safetensors + config.json: --ckpt_path CKPT --out FOLDER"),
    "import-zigma": ("commands.import_zigma", "write an official ZigMa checkpoint as safetensors + config.json"),
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


def with_underscores(argument: str) -> str:
    """Return an argument with the dashes of an option's name as underscores: --num-steps=5 becomes --num_steps=5."""
    name, equals, value = argument.partition("=")
    if not re.fullmatch(r"--[A-Za-z][\w.+-]*", name):
        return argument
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; for an error in a data loader's worker, the last line of its traceback."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(message.split())


def _output_is_closed() -> bool:
    """Return whether the reader of stdout is gone, as after `| head -1`; the rest of the output is then discarded."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    is_closed = any(events & select.POLLERR for _, events in output.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def console() -> int:
    """Entry point of the console script `zigma_pl`, which imports from the working directory as `python -m` does."""
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    return main()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 success, 1 an error with a message, 2 wrong usage, 75 preempted (run it again), 128 + n ended by signal n: 130 by
    Ctrl-C, 129 by SIGHUP, 143 by SIGTERM, 141 if the reader of stdout is gone.
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
    options = [with_underscores(option) for option in options]
    arguments = [command, *options] if module_name == "lightning_cli" else options
    try:
        try:
            return import_module(f"zigma_pl.cli.{module_name}").main(arguments)
        finally:
            sys.stdout.flush()  # here, where a BrokenPipeError is handled
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
