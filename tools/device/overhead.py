"""Measure the host time of calls to the CUDA ops, in microseconds: python tools/device/overhead.py."""

import time

import torch
from inputs import random_order, scan_arguments

from zigma_pl.ops import causal_conv1d_cuda as conv_cuda
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.selective_scan import cuda, direct, launch, selective_scan


def host_us(call, count=300):
    """Return the mean time until the call returns, without waiting for the device."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    elapsed = time.perf_counter() - begin
    torch.cuda.synchronize()
    return elapsed / count * 1e6


arguments, order = scan_arguments((1, 64, 64, 16), torch.bfloat16), random_order(64)
inputs = [arguments.get(n) for n in ("u", "delta", "A", "B", "C", "skip", "gate", "delta_bias")]
optional = {n: arguments[n] for n in ("skip", "gate", "delta_bias")}
call = launch.Call(*inputs, order)
out = torch.empty(1, 64, 64, dtype=torch.bfloat16, device="cuda")
fields = call.fields({"out": out}, (2, 1, 1), False)
kernel = launch.kernel("scan_forward", call.layout, 1, True, True, True, False, False, 0, 0)
weight, bias = torch.randn(64, 4, device="cuda"), torch.randn(64, device="cuda")
print("fields", host_us(lambda: launch.Call(*inputs, order).fields({"out": out}, (2, 1, 1), False)))
print("kernel launch", host_us(lambda: kernel((2, 1, 1), fields)))
print("scan op body", host_us(lambda: cuda.scan_forward._init_fn(*inputs, order, False, False)))
print("scan op", host_us(lambda: cuda.scan_forward(*inputs, order, False, False)))
print("conv op", host_us(lambda: conv_cuda.conv_forward(arguments["u"], weight, bias, order, True)))
out, states = direct.forward(*inputs, order)
print("scan without autograd", host_us(lambda: direct.forward(*inputs, order, 0)))
print("backward of the scan without autograd", host_us(lambda: direct.backward(out, *inputs, order, states)))
with torch.no_grad():
    print("scan, no gradients", host_us(lambda: selective_scan(*inputs[:5], **optional, visit_order=order)))
    print("conv, no gradients", host_us(lambda: causal_conv1d(arguments["u"], weight, bias, visit_order=order)))
