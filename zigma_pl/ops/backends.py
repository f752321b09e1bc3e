"""Backends of ops: their implementations, their availability on this machine, and the choice between them."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zigma_pl.core.errors import BackendUnavailable, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendStatus:
    """Availability of a backend on this machine.

    Args:
        name: value of the `backend` option.
        available: False if it cannot run here on any device.
        reason: why it is not available and how to change that; otherwise a description.
        devices: supported torch device types, or ("any",).
    """

    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: value of the `backend` option.
        run: function of the op's checked arguments, without `backend`.
        available: () -> (can run here, reason or description).
        devices: supported torch device types, or ("any",).
    """

    name: str
    run: Callable[..., Tensor]
    available: Callable[[], tuple[bool, str]]
    devices: tuple[str, ...] = ("any",)

    def takes(self, device_type: str) -> bool:
        """Return whether the backend supports tensors on this device type."""
        return "any" in self.devices or device_type in self.devices

    def self_check_device(self) -> str:
        """Return the device type for the self-check of this backend."""
        return "cpu" if self.takes("cpu") else self.devices[0]

    def status(self) -> BackendStatus:
        """Return the status of the backend, after trying to import what it needs."""
        available, reason = self.available()
        return BackendStatus(self.name, available, reason, self.devices)


@dataclass
class BackendTable:
    """The backends of one op, in the order of preference of "auto"."""

    op: str
    backends: tuple[Backend, ...]
    _announced: set[tuple[str, str]] = field(default_factory=set)

    def __getitem__(self, name: str) -> Backend:
        """Return the backend with a name; UserError if it does not exist."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        names = ", ".join(["auto", *(backend.name for backend in self.backends)])
        raise UserError(f"{self.op}: backend {name!r} does not exist; choose one of {names}")

    def statuses(self) -> dict[str, BackendStatus]:
        """Return the status of every backend by name."""
        return {backend.name: backend.status() for backend in self.backends}

    def choose(self, name: str, device_type: str) -> Backend:
        """Return the named backend, or for "auto" the first that runs on this device, and log that choice once.

        Raises:
            UserError: the backend does not exist.
            BackendUnavailable: the named backend cannot run here; there is no fallback to another one.
        """
        return self._first_available(device_type) if name == "auto" else self._named(name, device_type)

    def _named(self, name: str, device_type: str) -> Backend:
        backend = self[name]
        if not backend.takes(device_type):
            devices = ", ".join(backend.devices)
            raise BackendUnavailable(
                f"{self.op}: backend {name!r} runs on {devices}, the tensors are on {device_type}; use backend 'auto'"
            )
        available, reason = backend.available()
        if not available:
            raise BackendUnavailable(f"{self.op}: backend {name!r} cannot run here: {reason}")
        return backend

    def _first_available(self, device_type: str) -> Backend:
        refused: list[str] = []
        for backend in self.backends:
            if not backend.takes(device_type):
                continue
            available, reason = backend.available()
            if available:
                self._announce(backend, device_type, reason, refused)
                return backend
            refused.append(f"{backend.name}: {reason}")
        raise BackendUnavailable(f"{self.op}: no backend for {device_type}: {'; '.join(refused)}")

    def _announce(self, backend: Backend, device_type: str, reason: str, refused: list[str]) -> None:
        if (backend.name, device_type) in self._announced:
            return
        self._announced.add((backend.name, device_type))
        unavailable = f" (not available: {'; '.join(refused)})" if refused else ""
        logger.info("%s on %s uses backend %s, %s%s", self.op, device_type, backend.name, reason, unavailable)


def relative_errors(
    run: Callable[..., Tensor], reference: Callable[..., Tensor], arguments: dict[str, Tensor], **options: object
) -> dict[str, float]:
    """Return the largest error of the output and of each gradient, relative to the maximum of the float64 reference.

    Args:
        run, reference: the op under test and its reference, called with the arguments by name and the options.
        arguments: floating-point inputs in the dtype under test; the reference gets the same values in float64.
        options: arguments that are not differentiated.

    Returns: relative error by name, "output" for the output and the name of the input for each gradient; infinity for
    NaN, which max() may skip.
    """
    exact = _output_and_gradients(reference, {n: t.double() for n, t in arguments.items()}, options)
    tested = _output_and_gradients(run, arguments, options)
    return {name: _relative_error(tested[name], exact[name]) for name in exact}


def _output_and_gradients(
    run: Callable[..., Tensor], arguments: dict[str, Tensor], options: dict[str, object]
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    output = run(**leaves, **options)
    # Weights that differ from entry to entry; in a plain sum, errors could cancel.
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).cos().view(output.shape)
    gradients = torch.autograd.grad(output, list(leaves.values()), weights.to(output))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def _relative_error(tested: Tensor, exact: Tensor) -> float:
    error = (tested.double() - exact).abs().max() / exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.nan_to_num(nan=math.inf))
