"""The minimum time of a scan on a device, from its bytes, exponentials and multiply-adds and the device's peak rates.

Axes: B batch, L tokens, E inner width, N state.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from zigma_pl.ops.selective_scan.operations import STATE_UPDATE, STATE_UPDATE_BACKWARD, StateUpdate

Pass = Literal["forward", "backward", "both"]

EXPONENTIALS_PER_CLOCK = 16  # special function results per multiprocessor, compute capability 7.0 to 10.0
MULTIPLY_ADDS_PER_CLOCK = 128  # float32 lanes per multiprocessor
MULTIPLY_ADDS_PER_CLOCK_OF = {(7, 0): 64, (7, 5): 64, (8, 0): 64}


@dataclass(frozen=True)
class Rates:
    """Peak rates of a device.

    Args:
        bytes_per_second: bytes read and written, as measured with a copy.
        exponentials_per_second, multiply_adds_per_second: None if unknown.
    """

    bytes_per_second: float
    exponentials_per_second: float | None = None
    multiply_adds_per_second: float | None = None

    @classmethod
    def of(cls, device: torch.device, bytes_per_second: float) -> "Rates":
        """Return the rates of a device; on CUDA, arithmetic rates follow from multiprocessors and clock rate."""
        if device.type != "cuda":
            return cls(bytes_per_second)
        properties = torch.cuda.get_device_properties(device)
        clock_khz = getattr(properties, "clock_rate", None)  # not in every version of PyTorch
        if clock_khz is None:
            return cls(bytes_per_second)
        clocks = 1000.0 * clock_khz * properties.multi_processor_count
        lanes = MULTIPLY_ADDS_PER_CLOCK_OF.get((properties.major, properties.minor), MULTIPLY_ADDS_PER_CLOCK)
        return cls(bytes_per_second, clocks * EXPONENTIALS_PER_CLOCK, clocks * lanes)


@dataclass(frozen=True)
class Work:
    """Minimum work of one pass."""

    num_bytes: int
    exponentials: int
    multiply_adds: int

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.num_bytes + other.num_bytes,
            self.exponentials + other.exponentials,
            self.multiply_adds + other.multiply_adds,
        )

    def least_seconds(self, rates: Rates) -> float:
        """Return the maximum of the times for bytes, exponentials and multiply-adds, a lower bound."""
        times = [self.num_bytes / rates.bytes_per_second]
        if rates.exponentials_per_second is not None:
            times.append(self.exponentials / rates.exponentials_per_second)
        if rates.multiply_adds_per_second is not None:
            times.append(self.multiply_adds / rates.multiply_adds_per_second)
        return max(times)


def scan_work(shape: tuple[int, int, int, int], bytes_per_element: int, gated: bool) -> dict[Pass, Work]:
    """Count a scan of shape (B, L, E, N): inputs read once, outputs written once, only exponentials recomputed.

    Only the arithmetic of the state updates is counted, see `zigma_pl.ops.selective_scan.operations`.
    """
    num_rows, num_tokens, num_channels, num_states = shape
    rows = num_rows * num_tokens * num_channels * bytes_per_element
    matrices = 2 * num_rows * num_tokens * num_states * bytes_per_element
    num_updates = num_rows * num_tokens * num_channels * num_states
    # Forward: u, delta, out, gate. Backward: u, delta, dout, du, ddelta, gate and its gradient.
    forward = _work((3 + gated) * rows + matrices, num_updates, STATE_UPDATE)
    backward = _work((5 + 2 * gated) * rows + 2 * matrices, num_updates, STATE_UPDATE_BACKWARD)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def _work(num_bytes: int, num_updates: int, update: StateUpdate) -> Work:
    return Work(num_bytes, num_updates * update.exponentials, num_updates * update.instructions)


def ssd_work(
    shape: tuple[int, int, int, int], bytes_per_element: int, gated: bool, num_states: int, head_dim: int
) -> dict[Pass, Work]:
    """Count the bytes of SSD for (B, L, E), with inputs read once and outputs written once.

    No arithmetic is counted, as matrix units take less time for it than the bytes take.
    """
    num_rows, num_tokens, num_channels, _ = shape
    tokens = num_rows * num_tokens * bytes_per_element
    rows, matrices, steps = tokens * num_channels, 2 * tokens * num_states, tokens * num_channels // head_dim
    # Forward: x, out, gate. Backward: x, dout, dx, gate and its gradient.
    forward = Work((2 + gated) * rows + matrices + steps, 0, 0)
    backward = Work((3 + 2 * gated) * rows + 2 * matrices + 2 * steps, 0, 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}
