"""Processes forked from a server that has imported torch, Lightning and zigma_pl.

A new interpreter needs seconds for these imports, a fork milliseconds. A forked process is otherwise as fresh as a new
one: the server only imports, and does not see what tests have done to their own process.
"""

import gc
import multiprocessing
import os
import socket
import sys
from functools import cache
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300.0
PRELOADED = [
    "sklearn.datasets",
    "torch.utils.tensorboard",
    "zigma_pl.backbones",
    "zigma_pl.cli.lightning_cli",
    "zigma_pl.losses",
    "zigma_pl.mixers",
    "zigma_pl.optimizers",
    "zigma_pl.samplers",
]


class Processes:
    """Functions that run side by side, each in a process of its own; their output is in `<folder>/<name><rank>.txt`."""

    def __init__(self, name, folder, *calls, environments=None):
        self.outputs = [Path(folder, f"{name}{rank}.txt") for rank in range(len(calls))]
        self.processes = []
        for output, (function, *arguments), environment in zip(
            self.outputs, calls, environments or [{}] * len(calls), strict=True
        ):
            process = server().Process(
                target=_call, args=(function, arguments, folder, os.environ | environment, output)
            )
            process.start()
            self.processes.append(process)

    def statuses(self):
        """Wait until all have ended; returns each exit status, or minus the number of the signal that ended it."""
        for process in self.processes:
            process.join(TIMEOUT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def wait(self):
        """Wait until all have ended without an error."""
        statuses = self.statuses()
        assert statuses == [0] * len(statuses), "\n".join(output.read_text() for output in self.outputs)


def command_line(*arguments):
    """Run the command line: what a process calls that runs `python -m zigma_pl`."""
    from zigma_pl.cli.main import main

    sys.argv = ["zigma_pl", *map(str, arguments)]
    return main()


def of_lightning(num_processes):
    """The environments of processes of one node, as Lightning sets them in those that it starts."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [port | {"NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def of_torchrun(num_nodes):
    """The environments of processes on a node each, as torchrun sets them in those that it starts."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "TORCHELASTIC_RUN_ID": "none"}
    return [
        port | {"LOCAL_RANK": "0", "WORLD_SIZE": str(num_nodes), "RANK": str(rank), "GROUP_RANK": str(rank)}
        for rank in range(num_nodes)
    ]


@cache
def server():
    """The context of multiprocessing that forks from the server; nothing else of this process is inherited."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _call(function, arguments, folder, environment, output):
    gc.freeze()  # what was imported is no garbage
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
