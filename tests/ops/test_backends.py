"""The choice of a backend, and the error measure that self-checks and benchmarks rely on."""

import logging
import math

import pytest
import torch

from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops.backends import Backend, BackendTable, relative_errors
from zigma_pl.ops.rows import inverse_order


def table(kernel_available: bool) -> BackendTable:
    def kernel_status():
        return kernel_available, "a kernel" if kernel_available else "no kernel; install it"

    kernel = Backend("kernel", lambda: None, kernel_status, ("cuda",))
    return BackendTable("op", (kernel, Backend("plain", lambda: None, lambda: (True, "slow but sure"))))


def test_auto_takes_the_first_that_runs_and_logs_it_once(caplog):
    backends = table(kernel_available=False)
    with caplog.at_level(logging.INFO):
        assert [backends.choose("auto", "cuda").name for _ in range(3)] == ["plain"] * 3
    expected = "op on cuda uses backend plain, slow but sure (not available: kernel: no kernel; install it)"
    assert [record.message for record in caplog.records] == [expected]
    assert table(kernel_available=True).choose("auto", "cuda").name == "kernel"
    assert table(kernel_available=True).choose("auto", "cpu").name == "plain"


def test_a_named_backend_runs_or_says_why_not():
    assert table(kernel_available=True).choose("kernel", "cuda").name == "kernel"
    with pytest.raises(BackendUnavailable, match="cannot run here: no kernel; install it"):
        table(kernel_available=False).choose("kernel", "cuda")
    with pytest.raises(BackendUnavailable, match="runs on cuda, the tensors are on cpu"):
        table(kernel_available=True).choose("kernel", "cpu")
    with pytest.raises(UserError, match="choose one of auto, kernel, plain"):
        table(kernel_available=True).choose("kernle", "cuda")
    only_kernel = BackendTable("op", table(kernel_available=False).backends[:1])
    with pytest.raises(BackendUnavailable, match="no backend for cuda: kernel: no kernel; install it"):
        only_kernel.choose("auto", "cuda")


def test_statuses_report_every_backend():
    statuses = table(kernel_available=False).statuses()
    assert [(s.name, s.available, s.devices) for s in statuses.values()] == [
        ("kernel", False, ("cuda",)),
        ("plain", True, ("any",)),
    ]


def test_relative_errors_see_output_and_gradients():
    arguments = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0, -3.0])}

    class HalfGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, b):
            return b.clone()

        @staticmethod
        def backward(ctx, db):
            return db / 2

    exact = relative_errors(lambda a, b: a * b, lambda a, b: a * b, arguments)
    assert max(exact.values()) < 1e-7
    wrong = relative_errors(lambda a, b: a * HalfGradient.apply(b), lambda a, b: a * b, arguments)
    assert max(wrong["output"], wrong["a"]) < 1e-7
    assert wrong["b"] == pytest.approx(0.5)
    nan = relative_errors(lambda a, b: a * b + 0 * torch.tensor([math.nan, 0.0]), lambda a, b: a * b, arguments)
    assert nan["output"] == math.inf


def test_inverse_order():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3)).int()
    assert torch.equal(order.long()[inverse_order(order)], torch.arange(50))
    assert torch.equal(inverse_order(order)[order.long()], torch.arange(50))
