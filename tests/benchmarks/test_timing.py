"""Timing: samples in turns, their spread, and contestants that do not fit, on a clock that the test turns."""

import pytest
import torch

from zigma_pl.benchmarks.timing import (
    MAX_TIMED_SECONDS,
    MIN_SAMPLES,
    CudaClock,
    HostClock,
    KernelClock,
    Measurement,
    Prepared,
    Spread,
    calls_that_last,
    copy_bandwidth,
    measure,
    repeated,
)

CPU = torch.device("cpu")


class FakeTime:
    """A clock that only moves when a contestant works."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def contestant(self, name, durations):
        """Takes the durations in turn, the last one from then on."""
        left = list(durations)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return lambda: Prepared(repeated(call))


@pytest.fixture
def fake():
    return FakeTime()


def timed(fake, makers, repeats):
    return measure(makers, repeats=repeats, clock=HostClock(fake), device=CPU)


def test_median_and_quartiles_leave_the_warm_up_out(fake):
    # Two warm-up calls and one to see how long a sample must be; then five samples of one call each.
    makers = {"a": fake.contestant("a", [100.0, 100.0, 100.0, 1.0, 5.0, 2.0, 3.0, 4.0])}
    assert timed(fake, makers, 5)["a"] == Measurement(Spread(3.0, 2.0, 4.0, 5), None, (1.0, 5.0, 2.0, 3.0, 4.0))


def test_contestants_take_turns_and_every_other_turn_goes_backwards(fake):
    makers = {name: fake.contestant(name, [1.0]) for name in "abc"}
    timed(fake, makers, 3)
    assert "".join(fake.calls) == "aaabbbccc" + "abc" + "cba" + "abc"


def test_slow_contestants_take_fewer_samples(fake):
    makers = {
        "slow": fake.contestant("slow", [10.0]),
        "half": fake.contestant("half", [0.25]),
        "quick": fake.contestant("quick", [0.1]),
    }
    samples = {name: len(measurement.samples) for name, measurement in timed(fake, makers, 12).items()}
    assert samples == {"slow": MIN_SAMPLES, "half": MAX_TIMED_SECONDS / 0.25, "quick": 12}


def test_speed_ratios_are_taken_turn_by_turn():
    own, rival = Measurement(None, None, (1.0, 2.0, 4.0)), Measurement(None, None, (2.0, 3.0, 8.0, 1.0))
    assert own.speed_ratio(rival) == Spread(2.0, 1.75, 2.0, 3)
    assert own.speed_ratio(Measurement(None, None)) is None


def test_short_calls_are_timed_many_at_a_time(fake):
    measured = timed(fake, {"a": fake.contestant("a", [0.001])}, 2)["a"]
    assert measured.seconds.median == pytest.approx(0.001)
    assert len(fake.calls) == 3 + 2 * 50
    assert calls_that_last(0.05, 1e-9) == 100
    assert calls_that_last(0.05, 3.0) == 1


def test_a_single_sample_has_no_spread():
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


class Machine:
    """Memory for a limited number of contestants at a time."""

    def __init__(self, capacity):
        self.capacity, self.held = capacity, 0

    def maker(self, size, fails_at_call=None):
        machine = self

        class Held:
            def __init__(self):
                if machine.held + size > machine.capacity:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                machine.held += size
                self.num_calls = 0

            def __del__(self):
                if hasattr(self, "num_calls"):
                    machine.held -= size

            def __call__(self, num_calls):
                self.num_calls += num_calls
                if self.num_calls == fails_at_call:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        return lambda: Prepared(Held())


def test_what_never_fits_is_reported_and_the_rest_goes_on(fake):
    machine = Machine(3)
    measured = timed(fake, {"a": machine.maker(1), "huge": machine.maker(4), "b": machine.maker(1)}, 2)
    assert list(measured) == ["a", "huge", "b"]
    assert [m.out_of_memory for m in measured.values()] == [False, True, False]
    assert measured["a"].seconds.num_samples == 2
    assert machine.held == 0


def test_what_is_alone_already_is_not_tried_again(fake):
    tried = []

    def huge():
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert timed(fake, {"huge": huge}, 1)["huge"].out_of_memory
    assert len(tried) == 1


def test_what_does_not_fit_beside_the_others_is_measured_alone(fake):
    machine = Machine(3)
    measured = timed(fake, {"a": machine.maker(2), "b": machine.maker(3), "c": machine.maker(1)}, 2)
    assert not any(m.out_of_memory for m in measured.values())


class FakeCuda:
    """The memory and the events of torch.cuda: `allocated` bytes now, `peak` since the last reset, a clock in ms."""

    def __init__(self, monkeypatch):
        self.allocated = self.peak = self.num_device_allocations = 0
        self.time_ms = 0.0
        self.log = []
        fakes = {
            "memory_allocated": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", self.allocated),
            "synchronize": lambda device=None: self.log.append("synchronize"),
            "empty_cache": lambda: None,
            "memory_stats": lambda: {"num_device_alloc": self.num_device_allocations},
            "Event": self.event,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def allocate(self, size):
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def event(self, enable_timing):
        cuda = self

        class Event:
            def record(self):
                cuda.log.append("record")
                self.time_ms = cuda.time_ms

            def synchronize(self):
                cuda.log.append("wait")

            def elapsed_time(self, end):
                return end.time_ms - self.time_ms

        return Event()


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


@pytest.mark.parametrize(("keeps_first_memory", "expected"), [(False, 100 + 7), (True, 100 + 50)])
def test_peak_memory_is_the_contestants_own(keeps_first_memory, expected, cuda, fake):
    cuda.allocate(1000)  # somebody else's

    def maker():
        cuda.allocate(100)  # the weights
        extra = [50, 7]  # the first call compiles or captures

        def call():
            fake.now += 1.0
            size = extra.pop(0) if len(extra) > 1 else extra[0]
            cuda.allocate(size)
            cuda.allocate(-size)

        return Prepared(repeated(call), keeps_first_memory)

    measured = measure({"a": maker}, repeats=1, clock=HostClock(fake), device=torch.device("cuda"))
    assert measured["a"].peak_memory_bytes == expected


def test_device_times_are_those_between_events(cuda):
    def call():
        cuda.log.append("call")
        cuda.time_ms += 6.0

    assert CudaClock().seconds_per_call(repeated(call), 3) == pytest.approx(0.006)
    assert cuda.log == ["synchronize", "record", "call", "call", "call", "record", "wait"]


def test_a_sample_that_asked_the_device_for_memory_is_taken_again(cuda):
    times_ms = [50.0, 6.0, 7.0]

    def call():
        cuda.time_ms += times_ms.pop(0)
        cuda.num_device_allocations = 3  # in the first call only

    assert CudaClock().seconds_per_call(repeated(call), 1) == pytest.approx(0.006)
    assert CudaClock().seconds_per_call(repeated(call), 1) == pytest.approx(0.007)


def test_kernels_are_timed_behind_work_that_fills_the_queue(cuda, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(1, dtype=dtype))
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: cuda.log.append("overwrite"))
    clock = KernelClock()
    clock.seconds_per_call(repeated(lambda: cuda.log.append("call")), clock.num_calls(1e-6))
    overwrites = ["overwrite"] * KernelClock.NUM_PASSES
    assert cuda.log == ["synchronize", *overwrites, "record", "call", "record", "wait"]


def test_running_out_of_memory_while_sampling_frees_what_was_held(fake):
    machine = Machine(2)
    sampled = 3 + 100  # warm-up, then the first sample of calls that take no time
    measured = timed(fake, {"a": machine.maker(1), "leaky": machine.maker(1, fails_at_call=sampled)}, 2)
    assert not measured["a"].out_of_memory
    assert measured["leaky"].out_of_memory
    assert machine.held == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory(fake):
    def broken():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        timed(fake, {"a": broken}, 1)


def test_copy_bandwidth_is_that_of_a_memory():
    assert 1e8 < copy_bandwidth(CPU, repeats=1) < 1e13
