"""Checks of the options of Lightning's Trainer: training is counted in optimiser steps and has no epochs."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_COUNT, check_numbers, check_whole_numbers
from zigma_pl.data.order import check_length
from zigma_pl.training.lightning_private import accumulates

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16)  # the last five are aliases
# The dtype under autocast of the precisions that use it.
AUTOCAST: dict[str | int, torch.dtype] = {
    **dict.fromkeys(("bf16-mixed", "bf16"), torch.bfloat16),
    **dict.fromkeys(("16-mixed", "16", 16), torch.float16),
}
_NEVER = 2**62  # batches between validations

# option -> end of the error message
_UNSUPPORTED = {
    "min_epochs": ", as training has no epochs: set trainer.min_steps",
    "check_val_every_n_epoch": ", as training has no epochs: set trainer.val_check_interval, in steps",
    "reload_dataloaders_every_n_epochs": ", as training has no epochs: remove it",
    "use_distributed_sampler": ", as data modules distribute samples among processes themselves: remove it",
    "barebones": ", as it disables checkpoints and logs: remove it",
    "limit_predict_batches": ": set data.init_args.num_predict_samples instead",
}


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Reject Trainer options that are invalid, have no effect, or do not work with this package.

    Args:
        options: options by name; missing ones are not checked.

    Raises: UserError that names the option and the remedy.
    """
    for option, reason in _UNSUPPORTED.items():
        value = options.get(option)
        if value or (option == "check_val_every_n_epoch" and value is not None):
            raise UserError(f"trainer.{option} {value} is not supported{reason}")
    if options.get("enable_checkpointing") is False:
        raise UserError(
            "trainer.enable_checkpointing false is not supported, as runs always save their last step: raise "
            "checkpoint.every_n_train_steps to save less often"
        )
    if options.get("precision") is not None and options["precision"] not in PRECISIONS:
        raise UserError(
            f"trainer.precision {options['precision']} is not supported, as parameters, optimiser state and EMA are "
            "float32: choose 32-true, bf16-mixed or 16-mixed"
        )
    check_numbers("trainer", least=0, gradient_clip_val=options.get("gradient_clip_val"))
    check_whole_numbers("trainer", least=-1, num_sanity_val_steps=options.get("num_sanity_val_steps"))
    check_whole_numbers("trainer", least=0, min_steps=options.get("min_steps"))
    check_whole_numbers(
        "trainer",
        accumulate_grad_batches=options.get("accumulate_grad_batches"),
        log_every_n_steps=options.get("log_every_n_steps"),
        num_nodes=options.get("num_nodes"),
    )
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit: dict[str, Any] = {name: options.get(name)}
        check_numbers("trainer", least=0, most=1 if isinstance(limit[name], float) else LARGEST_COUNT, **limit)
    if options.get("max_steps") != -1:
        check_whole_numbers("trainer", max_steps=options.get("max_steps"))
    _check_validation_interval(options)
    _check_num_processes(options)
    check_length(options)


def default_precision(options: Mapping[str, Any]) -> Literal["bf16-mixed"] | None:
    """Return the precision for Trainer options without one: bf16-mixed on a GPU with bfloat16, else None for float32.

    Plugins may have a precision of their own, so None if there are any.
    """
    on_gpu = options.get("accelerator") in (None, "auto", "gpu", "cuda") and torch.cuda.is_available()
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bfloat16 and not options.get("plugins") else None


def _check_validation_interval(options: Mapping[str, Any]) -> None:
    interval = options.get("val_check_interval")
    if isinstance(interval, float):
        raise UserError(
            f"trainer.val_check_interval {interval} is a fraction of an epoch, but training has no epochs: give a "
            "number of steps or a time such as '00:00:30:00'"
        )
    if isinstance(interval, int):
        check_whole_numbers("trainer", val_check_interval=interval)


def _check_num_processes(options: Mapping[str, Any]) -> None:
    """Check that no more processes are started on a CPU than it has cores."""
    devices, accelerator, num_cores = options.get("devices"), options.get("accelerator", "auto"), os.cpu_count() or 1
    is_number = isinstance(devices, int) or (isinstance(devices, str) and devices.isdecimal())
    if accelerator not in ("auto", "cpu") or not is_number or int(devices or 0) <= num_cores:
        return
    if accelerator == "cpu" or not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise UserError(
            f"trainer.devices {devices} starts {devices} processes, but this machine has {num_cores} CPU cores and no "
            f"GPU is used: set it to {num_cores} or less"
        )


def schedule_validation(trainer: L.Trainer) -> None:
    """Make the trainer validate after the current batch only if it ends a multiple of `val_check_interval` steps.

    Lightning counts batches instead of optimiser steps, and would validate between accumulated micro-batches. Intervals
    given as a time, and validation by epoch, are not changed.
    """
    interval = getattr(trainer, "val_check_interval", None)  # missing if the interval is a time
    if trainer.check_val_every_n_epoch is not None or not isinstance(interval, int):
        return
    is_due = trainer.global_step % interval == 0 and not accumulates(trainer)
    trainer.val_check_batch = 1 if is_due else _NEVER
