"""Which implementations an op has, which of them can run here, and which one a call gets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zigma_pl.core.errors import BackendUnavailable, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine.

    Args:
        name: the value of the `backend` option.
        available: False when it cannot run here on any device.
        reason: why not, with the remedy; otherwise what it is.
        devices: torch device types it takes, or ("any",).
    """

    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: the value of the `backend` option.
        run: takes the op's arguments without `backend`, already checked.
        available: () -> (can run here, reason or description).
        devices: torch device types it takes, or ("any",).
    """

    name: str
    run: Callable[..., Tensor]
    available: Callable[[], tuple[bool, str]]
    devices: tuple[str, ...] = ("any",)

    def takes(self, device_type: str) -> bool:
        """Whether tensors on this type of device can be passed."""
        return "any" in self.devices or device_type in self.devices

    def self_check_device(self) -> str:
        """Returns the device type on which to check this backend."""
        return "cpu" if self.takes("cpu") else self.devices[0]

    def status(self) -> BackendStatus:
        """Looks for what the backend needs; imports it if it is there."""
        available, reason = self.available()
        return BackendStatus(self.name, available, reason, self.devices)


@dataclass
class BackendTable:
    """The backends of one op in the order in which "auto" prefers them; a new kernel is one more entry."""

    op: str
    backends: tuple[Backend, ...]
    _announced: set[tuple[str, str]] = field(default_factory=set)

    def __getitem__(self, name: str) -> Backend:
        """Returns the backend of this name; UserError for a name that does not exist."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        names = ", ".join(["auto", *(backend.name for backend in self.backends)])
        raise UserError(f"{self.op}: backend {name!r} does not exist; choose one of {names}")

    def statuses(self) -> dict[str, BackendStatus]:
        """Returns the status of every backend by name."""
        return {backend.name: backend.status() for backend in self.backends}

    def choose(self, name: str, device_type: str) -> Backend:
        """Returns the named backend, or for "auto" the first that runs on this device, which is logged once.

        Raises:
            UserError: no backend has this name.
            BackendUnavailable: the named backend cannot run here; nothing is put in its place.
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
        passed_over = f" (passed over: {'; '.join(refused)})" if refused else ""
        logger.info("%s on %s uses backend %s, %s%s", self.op, device_type, backend.name, reason, passed_over)


def relative_errors(
    run: Callable[..., Tensor], reference: Callable[..., Tensor], arguments: dict[str, Tensor], **options: object
) -> dict[str, float]:
    """Largest error of the output and of every gradient, relative to the largest entry of the float64 reference.

    Args:
        run, reference: the op under test and its definition, called with the arguments by name and the options.
        arguments: floating-point inputs in the dtype under test; the reference gets the same values in float64.
        options: arguments that are not differentiated.
    Returns: name of the output ("output") or input -> relative error.
    """
    exact = _output_and_gradients(reference, {n: t.double() for n, t in arguments.items()}, options)
    tested = _output_and_gradients(run, arguments, options)
    return {name: _relative_error(tested[name], exact[name]) for name in exact}


def _output_and_gradients(
    run: Callable[..., Tensor], arguments: dict[str, Tensor], options: dict[str, object]
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    output = run(**leaves, **options)
    # Any fixed weights that differ from entry to entry do: a plain sum would hide errors that cancel.
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).cos().view(output.shape)
    gradients = torch.autograd.grad(output, list(leaves.values()), weights.to(output))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def _relative_error(tested: Tensor, exact: Tensor) -> float:
    error = (tested.double() - exact).abs().max() / exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error)
