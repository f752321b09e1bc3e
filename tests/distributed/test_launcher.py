"""Kind: processes that outlive those they belong to, or that wait for one that has failed."""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import DistNetworkError

from zigma_pl.core.errors import UserError
from zigma_pl.core.signals import end_with_parent
from zigma_pl.training import launcher as launcher_module
from zigma_pl.training.callbacks.preemption import Preempted
from zigma_pl.training.launcher import Launcher


@pytest.fixture(autouse=True)
def first_process_again(monkeypatch):
    """Undo what setting a rank does to all of Lightning in this process."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)


class Started(Launcher):
    """Starts shell commands in the place of the other processes."""

    def __init__(self, *commands, rank=0):
        environment = LightningEnvironment()
        environment.set_global_rank(rank)
        super().__init__(environment, len(commands) + 1, 1)
        self.commands = commands

    def _call_children_scripts(self):
        self.procs = [subprocess.Popen(["sh", "-c", command]) for command in self.commands]

    def statuses(self):
        return [process.wait(timeout=10) for process in self.procs]


def raises(error):
    def function():
        raise error

    return function


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(launcher_module, "SECONDS_TO_FIND_THE_CAUSE", 1.0)
    monkeypatch.setattr(launcher_module, "SECONDS_TO_WAIT_FOR_THE_FIRST", 0.5)


@pytest.mark.parametrize("error", [UserError("wrong"), RuntimeError("wrong"), KeyboardInterrupt()])
def test_a_failure_of_the_first_process_ends_the_others(error):
    launcher = Started("exec sleep 60", "exec sleep 60")
    with pytest.raises(type(error)):
        launcher.launch(raises(error))
    assert launcher.statuses() == [-signal.SIGKILL] * 2


def test_an_error_that_another_process_has_caused_is_left_to_it():
    launcher = Started("exec sleep 60", "sleep 0.2; exit 3")
    with pytest.raises(SystemExit) as ended:
        launcher.launch(raises(RuntimeError("connection closed by peer")))
    assert ended.value.code == 3
    assert launcher.statuses() == [-signal.SIGKILL, 3]


def test_the_first_process_does_not_wait_in_vain(monkeypatch):
    ended, status = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda number: (status.append(number), ended.set()))
    launcher = Started("exec sleep 60", "exit 3")
    assert launcher.launch(lambda: ended.wait(10))
    assert status == [3]
    assert launcher.statuses() == [-signal.SIGKILL, 3]


def test_a_port_that_is_in_use_is_named():
    launcher = Started("exec sleep 60")
    with pytest.raises(UserError, match="MASTER_PORT"):
        launcher.launch(raises(DistNetworkError("The server socket has failed to listen. port: 29500")))
    assert launcher.statuses() == [-signal.SIGKILL]


@pytest.mark.parametrize("function", [raises(Preempted(signal.SIGTERM, 3)), lambda: None])
def test_processes_that_end_by_themselves_are_left_alone(function):
    launcher = Started("sleep 0.5; exit 75")
    with contextlib.suppress(Preempted):
        launcher.launch(function)
    assert launcher.statuses() == [75]


def test_another_process_lets_the_first_raise_before_it(monkeypatch):
    monkeypatch.setattr(launcher_module, "SECONDS_TO_WAIT_FOR_THE_FIRST", 0.3)
    began = time.monotonic()
    with pytest.raises(UserError):
        Started(rank=1).launch(raises(UserError("wrong")))
    assert time.monotonic() - began > 0.25


def test_a_process_ends_with_the_one_that_started_it():
    read, write = os.pipe()  # which closes when the last of the two processes has ended
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            end_with_parent()
            time.sleep(60)
        time.sleep(0.2)
        os._exit(0)
    os.close(write)
    began = time.monotonic()
    with os.fdopen(read) as pipe:
        assert pipe.read() == ""
    os.waitpid(parent, 0)
    assert time.monotonic() - began < 30
