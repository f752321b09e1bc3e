"""`fit` on two processes, the second of which is forked where Lightning would start a new interpreter."""

import importlib.util
import multiprocessing
import os
import subprocess
import sys

from processes import command_line


class Forked:
    """In the place of `subprocess.Popen`, runs a command of this package in a process forked from this one."""

    def __init__(self, command, env, cwd):
        assert command[:3] == [sys.executable, "-m", "zigma_pl.__main__"]
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(command[3:], env))
        self._process.start()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    @staticmethod
    def _run(arguments, environment):
        os.environ.update(environment)
        sys.exit(command_line(*arguments))


def fit(*arguments):
    """Run `fit` as `python -m zigma_pl` does; returns the exit status."""
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("zigma_pl.__main__")  # what the launcher runs again
    subprocess.Popen = Forked
    return command_line("fit", *arguments)
