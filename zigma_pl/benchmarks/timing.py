"""Timing several contestants in interleaved rounds: warm-up, medians and quartiles, peak memory, out of memory."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import torch

from zigma_pl.benchmarks.memory import (
    allocated_bytes,
    forget_compiled_code,
    num_device_allocations,
    peak_bytes,
    release_memory,
    reset_peak,
)

# Minimum duration of a sample, so that clock resolution and launch latency are negligible.
MIN_SAMPLE_SECONDS = 0.05
MAX_CALLS_PER_SAMPLE = 100
# Slow contestants have fewer samples: no more once both limits are reached.
MAX_TIMED_SECONDS = 1.5
MIN_SAMPLES = 5
GIGABYTE = 1e9

Run = Callable[[int], None]  # repeats the work this many times
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of samples, such as seconds per call."""

    median: float
    lower_quartile: float
    upper_quartile: float
    num_samples: int

    @classmethod
    def of(cls, samples: list[float]) -> "Spread":
        """Return the spread of one or more samples."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper, len(samples))


@dataclass(frozen=True)
class Measurement:
    """The measurement of one contestant.

    Args:
        seconds: time of one call; None if out of memory.
        peak_memory_bytes: peak memory of the contestant, including weights; None on a CPU, where PyTorch does not track
            it, and if out of memory.
        samples: seconds of one call in each round.
    """

    seconds: Spread | None
    peak_memory_bytes: int | None
    samples: tuple[float, ...] = ()

    @property
    def out_of_memory(self) -> bool:
        """Whether the contestant ran out of memory."""
        return self.seconds is None

    def speed_ratio(self, rival: "Measurement") -> Spread | None:
        """Return the speed relative to a rival, from samples of the same rounds, which have similar noise."""
        ratios = [other / own for own, other in zip(self.samples, rival.samples, strict=False)]
        return Spread.of(ratios) if ratios else None


@dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to be timed.

    Args:
        run: repeats the work the given number of times.
        keeps_first_memory: True if the first call keeps its memory, like a captured CUDA graph, so that the peak of the
            first call counts.
        min_calls: minimum number of calls per sample. A single training step on an idle device includes the time until
            the CPU has queued the first kernels; in real training this overlaps with the previous step.
    """

    run: Run
    keeps_first_memory: bool = False
    min_calls: int = 1


class Clock(Protocol):
    """Takes one sample."""

    def seconds_per_call(self, run: Run, num_calls: int) -> float:
        """Return the mean time of num_calls successive calls."""

    def num_calls(self, seconds_per_call: float) -> int:
        """Return the number of calls for one sample."""


class HostClock:
    """The CPU clock, for synchronous work."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def seconds_per_call(self, run: Run, num_calls: int) -> float:
        """Return the mean time of num_calls successive calls."""
        start = self._now()
        run(num_calls)
        return (self._now() - start) / num_calls

    def num_calls(self, seconds_per_call: float) -> int:
        """Return how many calls take MIN_SAMPLE_SECONDS, at most MAX_CALLS_PER_SAMPLE."""
        return calls_that_last(MIN_SAMPLE_SECONDS, seconds_per_call)


class CudaClock:
    """CUDA events around several calls, including the time to launch kernels."""

    def seconds_per_call(self, run: Run, num_calls: int) -> float:
        """Return the mean time of num_calls successive calls, starting on an idle device.

        Repeated if device memory had to be allocated, which happens if PyTorch released it for another contestant.
        """
        num_allocations = num_device_allocations()
        seconds = self._sample(run, num_calls)
        return seconds if num_device_allocations() == num_allocations else self._sample(run, num_calls)

    def _sample(self, run: Run, num_calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._before()
        start.record()
        run(num_calls)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / num_calls

    def num_calls(self, seconds_per_call: float) -> int:
        """Return how many calls take MIN_SAMPLE_SECONDS, at most MAX_CALLS_PER_SAMPLE."""
        return calls_that_last(MIN_SAMPLE_SECONDS, seconds_per_call)

    def _before(self) -> None:
        pass


class KernelClock(CudaClock):
    """CUDA events around one call, without launch time and with a cold cache.

    Memory is overwritten first, which flushes the cache and keeps the device busy while the CPU queues the call.
    """

    OVERWRITTEN_BYTES = 1 << 28
    NUM_PASSES = 24  # about 2 ms at 3 TB/s, longer than the CPU needs to queue a forward and a backward pass

    def __init__(self) -> None:
        self._memory = torch.empty(self.OVERWRITTEN_BYTES, dtype=torch.uint8, device="cuda")

    def num_calls(self, seconds_per_call: float) -> int:
        """Return 1, as the cache is cold for one call only."""
        return 1

    def _before(self) -> None:
        for _ in range(self.NUM_PASSES):
            self._memory.zero_()


def calls_that_last(seconds: float, seconds_per_call: float) -> int:
    """Return how many calls take this long, from 1 to MAX_CALLS_PER_SAMPLE."""
    return max(1, min(MAX_CALLS_PER_SAMPLE, math.ceil(seconds / max(seconds_per_call, 1e-9))))


def repeated(call: Callable[[], object]) -> Run:
    """Return a `Run` that repeats the call."""

    def run(num_calls: int) -> None:
        for _ in range(num_calls):
            call()

    return run


def clock_for(device: torch.device) -> Clock:
    """Return the clock for whole calls on this device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def measure(
    makers: Mapping[Key, Callable[[], Prepared]], *, repeats: int, clock: Clock, device: torch.device
) -> dict[Key, Measurement]:
    """Time the contestants in interleaved rounds, so that noise affects all of them; every other round is reversed.

    All contestants are in memory at the same time. Those that do not fit are timed afterwards, one at a time.

    Args:
        makers: functions that build a contestant; memory they allocate counts as its memory.
        repeats: samples per contestant; fewer for slow ones (MAX_TIMED_SECONDS).
        clock: takes the samples.
        device: device whose memory is measured.
    """
    measurements, left_over = _measure_together(makers, repeats, clock, device)
    for key in left_over:
        alone = {key: makers[key]}
        measurements |= _measure_together(alone, repeats, clock, device)[0] if len(makers) > 1 else {}
        measurements.setdefault(key, Measurement(None, None))
    return {key: measurements[key] for key in makers}


@dataclass
class _Entrant:
    run: Run
    num_calls: int
    peak_memory_bytes: int | None
    samples: list[float] = field(default_factory=list)

    def take_sample(self, clock: Clock) -> None:
        timed_seconds = self.num_calls * sum(self.samples)
        if len(self.samples) < MIN_SAMPLES or timed_seconds < MAX_TIMED_SECONDS:
            self.samples.append(clock.seconds_per_call(self.run, self.num_calls))

    def measurement(self) -> Measurement:
        return Measurement(Spread.of(self.samples), self.peak_memory_bytes, tuple(self.samples))


def _measure_together(
    makers: Mapping[Key, Callable[[], Prepared]], repeats: int, clock: Clock, device: torch.device
) -> tuple[dict[Key, Measurement], list[Key]]:
    """Return the measurements of the contestants that fit into memory together, and the keys of the others."""
    entrants: dict[Key, _Entrant] = {}
    for key, make in makers.items():
        progress(f"  {key if isinstance(key, str) else ', '.join(map(str, cast('tuple', key)))}")
        if not _fits(lambda key=key, make=make: entrants.update({key: _warm_up(make, clock, device)})):  # type: ignore[misc]
            release_memory(device)
    for round_index in range(repeats):
        for key in reversed(list(entrants)) if round_index % 2 else list(entrants):
            if not _fits(lambda key=key: entrants[key].take_sample(clock)):  # type: ignore[misc]
                del entrants[key]
                release_memory(device)
    measurements = {key: entrant.measurement() for key, entrant in entrants.items()}
    entrants.clear()
    release_memory(device)
    forget_compiled_code()
    return measurements, [key for key in makers if key not in measurements]


def _fits(step: Callable[[], None]) -> bool:
    """Run a step; returns False if it runs out of memory. The exception's references are released on return."""
    try:
        step()
    except torch.OutOfMemoryError:
        return False
    return True


def _warm_up(make: Callable[[], Prepared], clock: Clock, device: torch.device) -> _Entrant:
    """Build a contestant, run it until it is compiled and its memory is allocated, and measure its peak memory."""
    before = allocated_bytes(device)
    reset_peak(device)
    prepared = make()
    prepared.run(1)
    if not prepared.keeps_first_memory:
        reset_peak(device)
    prepared.run(1)
    peak = peak_bytes(device)
    num_calls = max(prepared.min_calls, clock.num_calls(clock.seconds_per_call(prepared.run, 1)))
    return _Entrant(prepared.run, num_calls, None if peak is None else peak - before)


def copy_bandwidth(device: torch.device, repeats: int = 10) -> float:
    """Measure the bytes per second, read plus written, of a copy that is much larger than the caches."""
    num_bytes = 1 << (30 if device.type == "cuda" else 27)
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock, copy = clock_for(device), repeated(lambda: target.copy_(source))
    copy(2)
    return 2 * num_bytes / statistics.median(clock.seconds_per_call(copy, 5) for _ in range(repeats))


def progress(line: str) -> None:
    """Print a progress message to stderr."""
    print(line, file=sys.stderr, flush=True)
