"""The other ways to compute a training step give the losses and gradients of the default one.

On the CPU: equal bits for gradient checkpointing and deterministic mode, which run the same kernels in the same order;
close numbers for torch.compile, whose fused kernels add up in another order, and for bfloat16, which has 8 bits.
"""

import shutil
from functools import partial

import lightning as L
import pytest
import torch
from backbones import tiny
from backbones.tiny import BACKBONES
from torch import distributed

from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.module import GenerativeModule

STEPS = 4


class Watch(L.Callback):
    """Keeps the loss of each step, and the gradients of the first before they are clipped."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.gradients = [parameter.grad.cpu().clone() for parameter in pl_module.backbone.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(outputs["loss"].item())


class WaitingIsAnError(L.Callback):
    """Once two steps are done, has PyTorch stop where the host waits for the GPU."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step >= 2 else "default")

    def on_train_batch_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")


def train(
    folder,
    name="ZigMa",
    *,
    precision="32-true",
    deterministic=None,
    accelerator="cpu",
    compiled=False,
    graphed=False,
    micro_batches=1,
    callbacks=(),
    **options,
):
    """Train a few steps; returns the losses, the gradients of the first step, and the average of the weights."""
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "latent_height": 8, "latent_width": 8, "patch_size": 2, "width": 32, "depth": 3}
    if name == "ParallelMamba":
        sizes["scan"] = ScanConfig(num_orders=2)
    backbone = BACKBONES[name](**sizes, num_classes=10, **options)
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    module = GenerativeModule(
        backbone,
        Objective(),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
        compile_backbone=compiled,
        graph_training=graphed,
    )
    watch = Watch()
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=STEPS,
        max_epochs=-1,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        deterministic=deterministic,
        gradient_clip_val=1.0,
        accumulate_grad_batches=micro_batches,
        callbacks=[EMA(decay=0.5), *(callbacks or [watch])],
        use_distributed_sampler=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(module, datamodule=Digits(batch_size=8))
    return watch.losses, watch.gradients, [value.cpu() for value in module.state_dict().values()]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default path, once."""
    return train(tmp_path_factory.mktemp("default"))


@pytest.fixture
def undetermined():
    """Leave deterministic mode behind."""
    yield
    torch.use_deterministic_algorithms(False)


def assert_same_bits(found, expected):
    assert found[0] == expected[0]
    assert len(expected[0]) == STEPS
    for part in (1, 2):
        assert len(found[part]) == len(expected[part]) > 0
        assert all(torch.equal(a, b) for a, b in zip(found[part], expected[part], strict=True))


def assert_close(found, expected, *, loss, gradient):
    """Compare losses, and all gradients as one vector, by their relative error."""
    assert found[0] == pytest.approx(expected[0], rel=loss)
    a, b = (torch.cat([part.flatten() for part in result[1]]) for result in (found, expected))
    assert torch.linalg.norm(a - b) < gradient * torch.linalg.norm(b)


def test_runs_are_repeatable(default, tmp_path):
    assert_same_bits(train(tmp_path), default)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_checkpointing_gives_the_same_bits(name, default, tmp_path):
    plain = default if name == "ZigMa" else train(tmp_path, name)
    assert_same_bits(train(tmp_path, name, gradient_checkpointing=True), plain)


def test_deterministic_mode_gives_the_same_bits(default, tmp_path, undetermined, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Lightning sets it, for good
    assert_same_bits(train(tmp_path, deterministic=True), default)
    assert torch.are_deterministic_algorithms_enabled()


def test_bf16_is_close(default, tmp_path):
    found = train(tmp_path, precision="bf16-mixed")
    assert found[0] != default[0]
    assert_close(found, default, loss=5e-3, gradient=2e-2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")
def test_compiled_is_close_with_gradient_checkpointing_too(default, tmp_path):
    torch.compiler.reset()
    assert_close(train(tmp_path, compiled=True, gradient_checkpointing=True), default, loss=1e-5, gradient=1e-5)


def kept_bytes(backbone):
    """Bytes of the distinct tensors that a forward pass keeps for the backward pass, parameters apart."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(*tiny.draw(16)).square().sum().backward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_checkpointing_keeps_a_fraction_of_the_memory(name):
    plain, checkpointed = (
        [kept_bytes(tiny.build(BACKBONES[name], depth=depth, gradient_checkpointing=on)) for depth in (5, 9)]
        for on in (False, True)
    )
    growth = [after - before for before, after in (plain, checkpointed)]
    assert 0 < growth[1] < 0.25 * growth[0]  # of four more blocks
    assert checkpointed[1] < 0.5 * plain[1]


def test_gradient_checkpointing_goes_with_compiled_blocks_and_static_graphs(tmp_path):
    torch.compiler.reset()
    plain, other = (tiny.build(BACKBONES["ZigMa"], gradient_checkpointing=on) for on in (False, True))
    assert other.state_dict().keys() == plain.state_dict().keys()
    compile_regions(other, backend="aot_eager")
    assert other.state_dict().keys() == plain.state_dict().keys()  # so checkpoints of compiled runs are plain ones
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(other, static_graph=True)
        for _ in range(2):  # the first pass finds the graph, the second relies on it
            gradients = []
            for network in (plain, wrapped):
                network.zero_grad()
                network(*tiny.draw()).square().sum().backward()
                gradients.append([parameter.grad.clone() for parameter in network.parameters()])
            torch.testing.assert_close(gradients[1], gradients[0])
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGPU:
    """The same on a GPU, against the CPU."""

    @pytest.fixture(scope="class")
    def gpu(self, tmp_path_factory):
        return train(tmp_path_factory.mktemp("gpu"), accelerator="gpu", deterministic=True)

    def test_gpu_is_close_to_the_cpu(self, gpu, default, undetermined):
        assert_close(gpu, default, loss=1e-4, gradient=1e-4)

    def test_deterministic_mode_repeats_bits(self, gpu, tmp_path, undetermined):
        assert_same_bits(train(tmp_path, accelerator="gpu", deterministic=True), gpu)

    def test_gradient_checkpointing_gives_the_same_bits(self, gpu, tmp_path, undetermined):
        assert_same_bits(train(tmp_path, accelerator="gpu", deterministic=True, gradient_checkpointing=True), gpu)

    def test_bf16_is_close(self, default, tmp_path):
        assert_close(train(tmp_path, accelerator="gpu", precision="bf16-mixed"), default, loss=5e-3, gradient=2e-2)

    @pytest.mark.parametrize("name", BACKBONES)
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
    @pytest.mark.parametrize("micro_batches", [1, 2])
    def test_replayed_steps_give_the_same_bits(self, name, precision, micro_batches, tmp_path, undetermined):
        options = {"accelerator": "gpu", "deterministic": True, "precision": precision, "micro_batches": micro_batches}
        found, expected = (train(tmp_path, name, graphed=graphed, **options) for graphed in (True, False))
        assert found[0] == expected[0]
        assert all(torch.equal(a, b) for a, b in zip(found[2], expected[2], strict=True))

    @pytest.mark.parametrize("graphed", [False, True])
    def test_a_step_waits_for_nothing(self, graphed, tmp_path):
        callbacks = [NonFiniteGuard(check_every_n_steps=STEPS + 1), Throughput(), WaitingIsAnError()]
        train(tmp_path, accelerator="gpu", precision="bf16-mixed", graphed=graphed, callbacks=callbacks)

    def test_replayed_steps_may_be_compiled(self, default, tmp_path):
        torch.compiler.reset()
        assert_close(train(tmp_path, accelerator="gpu", compiled=True, graphed=True), default, loss=1e-4, gradient=1e-4)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_compiled_is_close(self, default, tmp_path, checkpointing):
        torch.compiler.reset()
        options = {"accelerator": "gpu", "compiled": True, "gradient_checkpointing": checkpointing}
        assert_close(train(tmp_path, **options), default, loss=1e-4, gradient=1e-4)
