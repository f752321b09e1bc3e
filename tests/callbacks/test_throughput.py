"""The throughput callback: what counts as time, what the waits are, and what is advised."""

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler

from zigma_pl.backbones import ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.data import COCO, Digits
from zigma_pl.data.samples import SampleLoader
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.models.flops import count_flops
from zigma_pl.samplers import ODESampler
from zigma_pl.training.callbacks.data_wait import DataClock, FetchWatch, advice_on_encoding, advice_on_loading
from zigma_pl.training.callbacks.model_cost import peak_flops_per_second, tokens_per_image, training_flops_per_image
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.lightning_private import FETCH
from zigma_pl.training.module import GenerativeModule


class Clock:
    """A clock that goes on only where a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("zigma_pl.training.callbacks.throughput.time", clock)
    monkeypatch.setattr("zigma_pl.training.callbacks.data_wait.time", clock)
    return clock


class Logged(L.Callback):
    """Keeps what was logged after each batch."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, *_):
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class TakesTime(L.Callback):
    """A training batch takes 0.25 s, a validation and a checkpoint take 100 s."""

    def __init__(self, clock):
        self.clock = clock

    def on_before_backward(self, *_):
        self.clock.seconds += 0.25

    def on_validation_epoch_start(self, *_):
        self.clock.seconds += 100

    def on_save_checkpoint(self, *_):
        self.clock.seconds += 100


class SlowLoader(SampleLoader):
    """Takes 0.5 s for each batch."""

    def __iter__(self):
        for batch in super().__iter__():
            self.clock.seconds += 0.5
            yield batch


class SlowDigits(Digits):
    """Takes 0.5 s for each batch in the loader, and 0.25 s in encoding."""

    def __init__(self, clock):
        super().__init__(batch_size=8)
        self.clock = clock

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.__class__, loader.clock = SlowLoader, self.clock
        return loader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.clock.seconds += 0.25
        return super().on_after_batch_transfer(batch, dataloader_idx)


def fit(folder, data=None, callbacks=None, *, max_steps=6, **options):
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=4, width=16, depth=1, mixers=Mamba(state_size=4), num_classes=10)
    module = GenerativeModule(backbone, Objective(), ODESampler(num_steps=1))
    callbacks = [Throughput()] if callbacks is None else callbacks
    logged = Logged()
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[*callbacks, logged],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        **({"log_every_n_steps": 2, "limit_val_batches": 0, "enable_checkpointing": False} | options),
    )
    trainer.fit(module, datamodule=data or Digits(batch_size=8))
    return logged.rows, trainer


def test_rates_count_every_batch_and_only_training_time(tmp_path, clock):
    saving = L.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3)
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    options = {"enable_checkpointing": True, "accumulate_grad_batches": 2, **validation}
    rows, _ = fit(tmp_path, SlowDigits(clock), [Throughput(), TakesTime(clock), saving], max_steps=4, **options)
    assert clock.seconds > 3 * 100  # two validations and a checkpoint
    speeds = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    assert len(speeds) == 5  # from the fourth batch on, the second step
    assert speeds == pytest.approx([8.0] * 5)  # images of a batch, in one second


def test_waits_are_those_of_the_loader_and_of_encoding(tmp_path, clock):
    rows, _ = fit(tmp_path, SlowDigits(clock), [Throughput(), TakesTime(clock)])
    assert rows[-1]["train/data_wait"] == pytest.approx(0.5)
    assert rows[-1]["train/encoding"] == pytest.approx(0.25)
    assert rows[-1]["train/tokens_per_second"] == pytest.approx(4 * 8.0)
    assert "train/model_flops_utilization" not in rows[-1]
    assert "train/peak_memory_gib" not in rows[-1]


def test_the_memory_peak_is_that_of_the_whole_run(tmp_path, clock, monkeypatch):
    """CUDA graphs are recorded in the first steps, and later peaks do not include their memory."""
    peaks = iter([3 * 2**30, 2**30, 2 * 2**30])
    monkeypatch.setattr(Throughput, "_peak_bytes_until_now", lambda *_: next(peaks))
    throughput = Throughput()
    rows, _ = fit(tmp_path, SlowDigits(clock), [throughput, TakesTime(clock)])
    assert {row["train/peak_memory_gib"] for row in rows if "train/peak_memory_gib" in row} == {3.0}
    assert throughput.state_dict() == {"peak_memory_gib": 3.0}


class Queue:
    """A GPU's queue: orders are done one after another, an event when all before it are."""

    def __init__(self):
        self.host = self.busy_until = 0.0

    def order(self, seconds):
        self.busy_until = max(self.busy_until, self.host) + seconds


class Event:
    """Stands in for torch.cuda.Event on `queue`."""

    queue: Queue

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = max(self.queue.busy_until, self.queue.host)

    def query(self):
        return self.queue.host >= self.time

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)


def clock_of_queue(loading):
    """Run ten steps of 1.0 s on the queue, whose batches take `loading` s and another 0.25 s to encode."""
    queue = Event.queue = Queue()
    clock = DataClock(torch.device("cuda"))
    for _ in range(10):
        clock.batch_requested()
        queue.host += loading
        clock.batch_loaded()
        queue.order(0.25)
        clock.batch_encoded()
        queue.order(1.0)
    return queue, clock


def test_gpu_waits_only_while_it_has_nothing_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    queue, clock = clock_of_queue(loading=0.9)  # hidden behind the steps, but for the first
    assert clock.take().loading == pytest.approx(0.9)  # what the queue has come to until now
    queue.host = queue.busy_until
    later = clock.take()
    assert (later.loading, clock.take()) == (pytest.approx(0.0), (0.0, 0.0))
    _, clock = clock_of_queue(loading=1.75)
    Event.queue.host = Event.queue.busy_until
    assert clock.take() == (pytest.approx(1.75 + 9 * 0.5), pytest.approx(10 * 0.25))


def test_quick_loader_is_not_waited_for_and_the_profiler_is_left_as_it_was(tmp_path, clock, caplog):
    profiler = SimpleProfiler()
    with caplog.at_level(logging.WARNING):
        rows, trainer = fit(tmp_path, callbacks=[Throughput(), TakesTime(clock)], profiler=profiler)
    assert rows[-1]["train/data_wait"] == 0
    assert not [record for record in caplog.records if "waits" in record.message]
    assert trainer.profiler is profiler
    assert len(profiler.recorded_durations[FETCH]) == 6


def test_profiler_is_left_as_it_was_after_an_error(tmp_path):
    class Failing(Throughput):
        def on_train_batch_start(self, trainer, *rest):
            assert isinstance(trainer.profiler, FetchWatch)
            raise RuntimeError("stop")

    profiler = SimpleProfiler()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, callbacks=[Failing()], profiler=profiler)


def test_utilization_is_three_forward_passes_over_the_peak(tmp_path):
    rows, trainer = fit(tmp_path, callbacks=[Throughput(peak_tflops=0.001)])
    backbone = trainer.lightning_module.backbone
    rate = rows[-1]["train/images_per_second"]
    assert rows[-1]["train/model_flops_utilization"] == pytest.approx(3 * count_flops(backbone).total * rate / 1e9)
    with pytest.raises(UserError, match="peak_tflops"):
        Throughput(peak_tflops=0.0)


def test_warning_names_the_cause_once_and_again_when_it_changes(monkeypatch, caplog):
    class Trainer:
        datamodule = Digits()

    callback = Throughput()
    with caplog.at_level(logging.WARNING):
        for share in (0.05, 0.34, 0.36, 0.30, 0.60, 0.08, 0.2):
            callback._warn(Trainer, share, 0.5)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "training waits for the loader 34% of the time",
        "training waits for the loader 60% of the time",
        "training waits for the loader 20% of the time",
    ]
    assert "raise data.init_args.num_workers (now 0)" in caplog.text
    assert "encoders" not in caplog.text  # there is nothing to prepare of pixels and classes


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"num_workers": 0}, ["in the training process", "num_workers (now 0)"]),
        ({"num_workers": 2}, ["num_workers (now 2)", "zigma_pl prepare"]),
        ({"num_workers": 2, "cache": "prepared"}, ["num_workers (now 2)", "faster disk"]),
    ],
)
def test_advice_on_loading(options, parts):
    advice = advice_on_loading(COCO(**options))
    assert all(part in advice for part in parts)


def test_advice_on_encoding():
    assert "prepare" in advice_on_encoding(COCO())  # its captions are encoded
    assert advice_on_encoding(COCO(cache="prepared")) is None
    assert advice_on_encoding(Digits()) is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Something New", None),
    ],
)
def test_peaks_are_found_by_name(name, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops_per_second(torch.device("cpu")) is None
    peak = peak_flops_per_second(torch.device("cuda"))
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_costs_of_an_image(monkeypatch, caplog):
    clips = ZigMa(2, 4, 6, patch_size=2, latent_frames=3, width=16, depth=1, caption_dim=5)
    assert tokens_per_image(clips) == 3 * 2 * 3
    flops = [training_flops_per_image(clips, tokens) for tokens in (4, 8, None)]
    assert flops[0] < flops[1] < flops[2]

    def unknown(*_, **__):
        raise UserError("the arithmetic of aten.fold is not known")

    monkeypatch.setattr("zigma_pl.models.flops.count_flops", unknown)
    assert training_flops_per_image(clips) is None
    assert "aten.fold" in caplog.text
