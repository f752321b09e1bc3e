"""Several processes of one run: if one fails, all end within seconds, and one of them says why."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from torch.distributed import DistNetworkError

from zigma_pl.core.errors import UserError
from zigma_pl.training.callbacks.preemption import Preempted
from zigma_pl.training.lightning_private import ScriptLauncher

# Most errors come up in all processes together, or in one, whose end the others then notice by an error of their own.
SECONDS_TO_WAIT_FOR_THE_FIRST = 2.0  # before another process than the first raises: the first ends it till then
SECONDS_TO_FIND_THE_CAUSE = 5.0  # before the first raises what a lost connection may have caused: another's end

_SECONDS_BETWEEN_LOOKS = 0.1


class Launcher(ScriptLauncher):
    """Starts the processes of a node, in the place of Lightning's own, which leaves them alone when the first fails.

    Where something else has started them (torchrun, SLURM), that has to end them; of what they say only the first's
    error is not delayed.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, and call the function.

        Raises:
            UserError: the processes do not find each other.
            SystemExit: another process has failed, and has said why; with its status.
        """
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self.start_others()
        ended = threading.Event()
        threading.Thread(target=self._end_with_children, args=(ended,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        except Preempted:  # as the others are
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                self._leave_it_to_the_cause(error)
            self.kill(signal.SIGKILL)
            if isinstance(error, DistNetworkError):
                raise UserError(
                    f"the processes of this run do not find each other at {environment.main_address}:"
                    f"{environment.main_port} ({str(error).split('. ', 1)[0]}): set the environment variable "
                    "MASTER_PORT to a port that is free"
                ) from error
            raise
        finally:
            ended.set()

    def _leave_it_to_the_cause(self, error: Exception) -> None:
        if self.cluster_environment.global_rank() != 0:
            time.sleep(SECONDS_TO_WAIT_FOR_THE_FIRST)
        elif self.procs and isinstance(error, RuntimeError) and not isinstance(error, DistNetworkError):
            status = self._failure_within(SECONDS_TO_FIND_THE_CAUSE)
            if status:
                self.kill(signal.SIGKILL)
                sys.exit(status)

    def _failure_within(self, seconds: float) -> int:
        """Return the status of a process that failed, 0 if none has after so many seconds."""
        until = time.monotonic() + seconds
        while not (status := self._failure()) and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return status

    def _failure(self) -> int:
        statuses = [process.poll() or 0 for process in self.procs]
        return next((status if status > 0 else 128 - status for status in statuses if status), 0)

    def _end_with_children(self, ended: threading.Event) -> None:
        """End this process, which may wait in vain for one that has failed."""
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            status = self._failure()
            if status and not ended.wait(SECONDS_TO_WAIT_FOR_THE_FIRST):
                self.kill(signal.SIGKILL)
                sys.stderr.flush()
                os._exit(status)
