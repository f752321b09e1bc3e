"""Time variants of the cross-attention from tokens to captions of different lengths: python tools/device/attention.py

Compares every variant with float64, then prints milliseconds of forward and backward passes in bfloat16.
"""

import argparse
import itertools

import torch
from kernels import median_ms
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

SHAPES = [(32, 1024, 77), (32, 1024, 80), (64, 1024, 32), (8, 4096, 77)]  # B, L, T
NUM_HEADS, HEAD_DIM = 8, 64


def make_inputs(num_rows, num_tokens, num_words, dtype, device):
    """Return query (B, H, L, d), key and value (B, H, T, d) with the strides of projections, and the mask (B, T)."""
    torch.manual_seed(0)
    lengths = (num_rows, num_tokens), (num_rows, num_words), (num_rows, num_words)
    rows = (torch.randn(*length, NUM_HEADS * HEAD_DIM, dtype=torch.float64) for length in lengths)
    mask = torch.arange(num_words) <= torch.arange(num_rows)[:, None] % num_words
    query, key, value = (r.to(device, dtype).unflatten(2, (NUM_HEADS, HEAD_DIM)).transpose(1, 2) for r in rows)
    return query, key, value, mask.to(device)


def masked(query, key, value, mask):
    """Compute the attention as zigma_pl.models.layers.cross_attention does."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])


def unmasked(query, key, value, mask):
    """Leave out the mask, to measure its cost; the results are wrong."""
    return scaled_dot_product_attention(query, key, value)


def one_more_channel(query, key, value, mask):
    """Add a channel for the mask: ones in the query, large negative numbers in masked keys."""
    penalty = torch.where(mask, 0.0, -1e4).to(key.dtype)[:, None, :, None].expand(-1, NUM_HEADS, -1, 1)
    query = pad(torch.cat([query, torch.ones_like(query[..., :1])], -1), (0, 7))
    key = pad(torch.cat([key, penalty], -1), (0, 7))
    value = pad(value, (0, 8))
    return scaled_dot_product_attention(query, key, value, scale=HEAD_DIM**-0.5)[..., :HEAD_DIM]


def by_hand(query, key, value, mask):
    """Compute the attention as two matrix products and a softmax."""
    scores = (query * HEAD_DIM**-0.5) @ key.transpose(2, 3)
    weights = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(-1)
    return weights @ value


def within(backend, variant):
    """Return the variant restricted to one of PyTorch's backends."""

    def run(*inputs):
        with sdpa_kernel(backend):
            return variant(*inputs)

    return run


VARIANTS = {
    "masked": masked,
    "masked, efficient": within(SDPBackend.EFFICIENT_ATTENTION, masked),
    "masked, cuDNN": within(SDPBackend.CUDNN_ATTENTION, masked),
    "one more channel, flash": within(SDPBackend.FLASH_ATTENTION, one_more_channel),
    "by hand": by_hand,
    "by hand, compiled": torch.compile(by_hand, dynamic=False),
    "unmasked (wrong)": unmasked,
    "unmasked, flash (wrong)": within(SDPBackend.FLASH_ATTENTION, unmasked),
}


def output_and_gradients(variant, inputs, dout):
    """Return the output and the gradients of query, key and value."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    out = variant(*leaves, inputs[3])
    return [out, *torch.autograd.grad(out, leaves, dout)]


def error(variant, dtype, device):
    """Return the largest relative error of output and gradients compared with float64."""
    inputs = make_inputs(4, 128, 24, dtype, device)
    exact_inputs = [tensor.double() for tensor in inputs[:3]] + [inputs[3]]
    dout = torch.randn(inputs[0].shape, dtype=torch.float64, device=device)
    tested = output_and_gradients(variant, inputs, dout.to(dtype))
    exact = output_and_gradients(by_hand, exact_inputs, dout)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(tested, exact, strict=True))


def main():
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu: check only")
    device = parser.parse_args().device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    working = {}
    for name, variant in VARIANTS.items():
        try:
            print(f"{name:28s} error {error(variant, dtype, device):.1e}", flush=True)
            working[name] = variant
        except RuntimeError as problem:
            print(f"{name:28s} does not run: {str(problem).splitlines()[0][:100]}", flush=True)
    if device == "cpu":
        return
    for shape, (name, variant) in itertools.product(SHAPES, working.items()):
        inputs = make_inputs(*shape, dtype, device)
        dout = torch.randn_like(inputs[0])
        with torch.no_grad():
            forward = median_ms(lambda run=variant, inputs=inputs: run(*inputs), seconds=0.05, repeats=5)
        both = median_ms(
            lambda run=variant, inputs=inputs, d=dout: output_and_gradients(run, inputs, d), seconds=0.05, repeats=5
        )
        print(f"{shape!s:16s} {name:28s} forward {forward:.3f} ms, forward + backward {both:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
