"""FLOPs of backbones: against counts by hand, PyTorch's counter and published numbers; how they grow."""

from dataclasses import astuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.mixers import LinearAttention, Mamba, Mamba2, ParallelDirections, SelfAttention
from zigma_pl.models.flops import count_flops, counting, operations_of
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.operations import Flops
from zigma_pl.ops.selective_scan import reference, selective_scan
from zigma_pl.ops.ssd import ssd
from zigma_pl.scan.schedule import ScanConfig

# Batch, channels, tokens (a grid of 3 x 2), width, inner width, states, taps, rank of the step sizes.
B, C, L, D, E, N, K, R = 2, 4, 6, 32, 64, 16, 4, 2
M, HEADS = 96, 2  # hidden width of the perceptron, heads of the attention
GRID = {"in_channels": C, "latent_height": 3, "latent_width": 2}
ONE_LAYER = {**GRID, "width": D, "depth": 1, "position_embedding": "learnable"}
PERCEPTRON = {"mlp_ratio": M / D}
MAMBA2 = Mamba2(state_size=N, head_dim=16, num_groups=2)
DIT, UVIT = SelfAttention(HEADS, qk_norm=False), SelfAttention(HEADS, bias=False, qk_norm=False)


def embeddings():
    """Patches with their positions; time: 128 angles, cosines and sines, a perceptron with SiLU."""
    linear = 2 * B * L * C * D + 2 * B * 256 * D + 2 * B * D * D
    other = B * L * D + B * L * D + B + B * 128 * 3 + B * D + 4 * B * D + B * D
    return Flops(matrix_products=linear, elementwise=other)


def modulation(num_vectors):
    """SiLU of the conditioning and a linear layer to shifts, scales and gates."""
    return Flops(matrix_products=2 * B * D * num_vectors * D, elementwise=4 * B * D + B * num_vectors * D)


def final_layer(branch_is_pending):
    """LayerNorm, modulation (1 + scale, then a multiply-add) and projection, after the last branch where it is left."""
    norm = 2 * B * L * D * branch_is_pending + 5 * B * L * D + B * D + 2 * B * L * D
    own = Flops(matrix_products=2 * B * L * D * C, elementwise=norm + B * L * C)
    return own + modulation(2)


def mamba_block(num_directions):
    """RMSNorm (square, mean, quotient, weight), modulation, and a mixer of directions that share both projections."""
    norm = 4 * B * L * D + 2 * B * L + B * D + 2 * B * L * D
    projections = 2 * B * L * D * 2 * E + 2 * B * L * E * D
    direction = Flops(
        matrix_products=2 * B * L * E * (R + 2 * N) + 2 * B * L * R * E,
        convolution=2 * K * B * L * E,
        # delta A, exp, (delta u) B, h (3 with its sum), C h (2 with its sum); delta u, bias, softplus, skip, gate.
        scan=B * L * E * N * 7 + B * L * E * (1 + 1 + 2 + 2 + 5),
        elementwise=B * L * E * (1 + 4) + 2 * E * N,  # bias and SiLU; -exp(A_log)
    )
    block = modulation(3) + Flops(matrix_products=projections, elementwise=norm + (num_directions - 1) * B * L * E)
    return sum([direction] * num_directions, block)


def mamba2_block():
    """RMSNorm, modulation, projection, convolution of x, B and C, one chunk of SSD, norm of 2 groups, projection."""
    heads, groups, tokens = E // 16, 2, B * L
    convolved, projected = E + 2 * groups * N, 2 * E + 2 * groups * N + heads
    norms = 4 * tokens * D + 2 * tokens + B * D + 2 * tokens * D + 4 * tokens * E + 2 * tokens * groups
    pairs = B * L * L
    # C B^T of each group; difference, exp and product with C B^T; M X; d x, skip, gate; d A, its sum, bias, softplus.
    scan = 2 * pairs * groups * N + heads * pairs * (3 + 2 * 16) + tokens * E * (1 + 2 + 5) + tokens * heads * 5
    mixer = Flops(
        matrix_products=2 * tokens * D * projected + 2 * tokens * E * D,
        convolution=2 * K * tokens * convolved,
        scan=scan,
        elementwise=norms + tokens * convolved * (1 + 4) + 2 * heads,  # bias and SiLU; -exp(A_log)
    )
    return modulation(3) + mixer


def attention(num_tokens, query_bias):
    """One linear layer for queries, keys and values, both products, softmax, and a linear layer."""
    tokens, scores = B * num_tokens, B * HEADS * num_tokens * num_tokens
    linear = 2 * tokens * D * 3 * D + 2 * tokens * D * D
    other = 3 * tokens * D * query_bias + 2 * tokens * D + 5 * scores + tokens * D  # queries and keys are both scaled
    return Flops(matrix_products=linear, attention=2 * (2 * B * num_tokens * num_tokens * D), elementwise=other)


def perceptron(num_tokens):
    tokens = B * num_tokens
    return Flops(matrix_products=2 * tokens * D * M * 2, elementwise=tokens * (M + 9 * M + D))


def dit_block():
    norms = 2 * (5 * B * L * D + B * D + 2 * B * L * D)
    gates = 2 * (2 * B * L * D)
    return modulation(6) + attention(L, True) + perceptron(L) + Flops(elementwise=norms + gates)


def uvit_layers():
    """The block on time and patches, its norms with weight and bias; norm, projection, 3 x 3 convolution of patches."""
    num_tokens = L + 1
    sums_and_norms = 2 * (1 + 7) * B * num_tokens * D
    block = attention(num_tokens, False) + perceptron(num_tokens) + Flops(elementwise=sums_and_norms)
    end = 7 * B * L * D + B * L * C + B * L * C
    return block + Flops(matrix_products=2 * B * L * D * C, convolution=2 * 9 * C * B * L * C, elementwise=end)


BY_HAND = {
    "zigma": (ZigMa(**ONE_LAYER), embeddings() + mamba_block(1) + final_layer(True)),
    "vision_mamba": (VisionMamba(**ONE_LAYER), embeddings() + mamba_block(2) + final_layer(True)),
    "parallel_mamba": (
        ParallelMamba(**ONE_LAYER, scan=ScanConfig("zigzag", 3)),
        embeddings() + mamba_block(3) + final_layer(True),
    ),
    "dit": (DiT(**ONE_LAYER, **PERCEPTRON, mixers=DIT), embeddings() + dit_block() + final_layer(False)),
    "uvit": (UViT(**ONE_LAYER, **PERCEPTRON, mixers=UVIT), embeddings() + uvit_layers()),
}


@pytest.mark.parametrize(("backbone", "by_hand"), BY_HAND.values(), ids=BY_HAND)
def test_one_layer_takes_what_is_counted_by_hand(backbone, by_hand):
    assert count_flops(backbone, B) == by_hand
    assert by_hand.total == sum(astuple(by_hand))


@pytest.mark.parametrize(("backbone", "forward"), BY_HAND.values(), ids=BY_HAND)
def test_the_backward_pass_takes_two_products_for_each(backbone, forward):
    both = count_flops(backbone, B, backward=True)
    without_input_gradients = 2 * B * L * C * D + 2 * B * 256 * D  # of x_t and of the time's features
    assert both.matrix_products == 3 * forward.matrix_products - without_input_gradients
    assert both.attention == 3 * forward.attention
    # Of the causal convolution the output is computed again, for the derivative of SiLU.
    assert both.convolution == (3 if isinstance(backbone, UViT) else 4) * forward.convolution
    # Forward; again but C h; the adjoint and what it passes on; dC, dB, d(delta u); d(delta A) and its parts. Rows.
    in_both = (7 + 5 + 3 + 6 + 6) * N + 11 + (4 + 4 + 13 + 8)
    assert both.scan == num_scans(forward) * B * L * E * in_both


def test_a_layer_of_mamba2_takes_what_is_counted_by_hand():
    by_hand = embeddings() + mamba2_block() + final_layer(True)
    assert count_flops(ZigMa(**ONE_LAYER, mixers=MAMBA2), B) == by_hand


def test_ssd_in_chunks_is_linear_in_the_tokens():
    """Chunks of 64 tokens with states between them, counted by hand; the backward pass in proportion."""
    x, steps, states = (torch.empty(1, 256, *axes, device="meta") for axes in ((3, 8), (3,), (1, 16)))
    A = torch.empty(3, device="meta")
    counts = []
    for num_chunks in (2, 4):
        rows = [tensor[:, : 64 * num_chunks].requires_grad_() for tensor in (x, steps, states, states)]
        with counting() as counter:
            ssd(rows[0], rows[1], A, *rows[2:], backend="cpu").backward(torch.empty_like(rows[0]))
        counts.append(operations_of(counter).scan)
        per_pair, per_state = 3 * (2 * 8 + 3) + 2 * 16, 3 * (2 * 2 * 8 + 2)
        forward = num_chunks * (64 * 64 * per_pair + 64 * 16 * per_state + 64 * 3 * (8 + 2) + 3 * 16 * 8 * 2)
        with counting() as counter:
            ssd(*(tensor.detach() for tensor in (rows[0], rows[1], A, *rows[2:])), backend="cpu")
        assert operations_of(counter).scan == forward
        assert 2 * forward < counts[-1] - forward < 3 * forward
    assert counts[1] == 2 * counts[0]


def num_scans(forward):
    return forward.scan // (B * L * E * (7 * N + 11))


# Forward and backward pass, as counted before PyTorch's FlopCounterMode did.
TOTALS = {
    "zigma": 1_192_542,
    "vision_mamba": 1_764_958,
    "parallel_mamba": 2_337_374,
    "dit": 1_032_818,
    "uvit": 1_076_646,
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_of_both_passes_stay(name):
    assert count_flops(BY_HAND[name][0], B, backward=True).total == TOTALS[name]


def test_anyones_counter_counts_our_ops():
    rows, states, A = torch.zeros(B, L, E), torch.zeros(B, L, N), torch.zeros(E, N)
    with FlopCounterMode(display=False) as counter:
        selective_scan(rows, rows, A, states, states, backend="cpu")
        causal_conv1d(rows, torch.zeros(E, K), activation=None, backend="cpu")
    assert counter.get_total_flops() == B * L * E * (7 * N + 1) + 2 * K * B * L * E


@pytest.mark.parametrize(("backbone", "one"), BY_HAND.values(), ids=BY_HAND)
def test_twice_the_batch_is_twice_the_work_but_for_what_no_sample_has(backbone, one):
    two = count_flops(backbone, 2 * B)
    assert two + Flops(elementwise=num_scans(one) * 2 * E * N) == one + one  # -exp(A_log)


def test_the_scan_is_linear_in_the_tokens_and_attention_quadratic():
    def counts(backbone_class, side):
        return count_flops(backbone_class(C, side, side, width=D, depth=2), B)

    small, large = (counts(ZigMa, side) for side in (4, 8))
    assert (large.scan, large.convolution) == (4 * small.scan, 4 * small.convolution)
    small, large = (counts(DiT, side) for side in (4, 8))
    assert large.attention == 16 * small.attention


def test_the_scan_takes_what_its_definition_runs():
    with torch.device("meta"):
        rows, states, channels, A = (torch.empty(*shape) for shape in ((B, L, E), (B, L, N), (E,), (E, N)))
    with counting() as counter:
        reference.run(rows, rows, A, states, states, channels, rows, channels)
    assert operations_of(counter) == Flops(elementwise=B * L * E * (7 * N + 11))


@pytest.mark.parametrize("kind", [DiT, UViT])
def test_products_and_attention_are_those_of_pytorchs_own_counter(kind):
    backbone = kind(**GRID, width=D, depth=3, num_classes=3)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        backbone(torch.randn(B, C, 3, 2), torch.rand(B), {"class": Condition(torch.zeros(B, dtype=torch.int64))})
    assert counter.get_total_flops() == 2 * count_flops(backbone, B).multiply_adds


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"size": "XL", "patch_size": 2}, 118.64),
        ({"size": "L", "patch_size": 2}, 80.71),
        ({"size": "B", "patch_size": 2}, 23.01),
        ({"size": "B", "patch_size": 4}, 5.56),
        ({"size": "S", "patch_size": 2}, 6.06),
    ],
)
def test_multiply_adds_are_the_gflops_that_dit_publishes(options, published):
    """DiT, arXiv:2212.09748, table 4: 32 x 32 latents, and twice as many channels in the prediction."""
    with torch.device("meta"):
        backbone = DiT(4, 32, 32, mlp_ratio=4.0, num_classes=1000, **options)
    assert count_flops(backbone).multiply_adds / 1e9 == pytest.approx(published, rel=1.5e-3)


def test_a_caption_is_attended_to():
    backbone = ZigMa(**ONE_LAYER, caption_dim=24, attention_heads=2, attention_head_dim=8)
    assert count_flops(backbone, B, num_caption_tokens=5).attention == 2 * (2 * B * L * 5 * 2 * 8)
    assert count_flops(backbone, B) == count_flops(backbone, B, num_caption_tokens=77)


VARIANTS = {
    "classes": ZigMa(**ONE_LAYER, num_classes=3),
    "legacy": ZigMa(**ONE_LAYER, residual="legacy", caption_dim=8),
    "clip": ZigMa(**GRID, width=D, depth=2, latent_frames=2, position_embedding="none"),
    "factorized": ZigMa(**GRID, width=D, depth=3, latent_frames=2, scan=ScanConfig("zigzag", 8, video="factorized")),
    "bidirectional clip": VisionMamba(**ONE_LAYER, latent_frames=2, caption_dim=8),
    "skips": UViT(**GRID, width=D, depth=3, latent_frames=2, caption_dim=8),
    "hybrid": ZigMa(**GRID, width=D, depth=2, mixers=[Mamba(), SelfAttention(rotary=True)]),
    "Mamba-2": ZigMa(**GRID, width=D, depth=2, mixers=[MAMBA2, SelfAttention()]),
    "parallel Mamba-2": ZigMa(**GRID, width=D, depth=2, mixers=ParallelDirections(2, direction=MAMBA2)),
    "linear attention": ZigMa(**GRID, width=D, depth=2, mixers=LinearAttention()),
    "DiT with captions": DiT(**GRID, width=D, depth=2, latent_frames=2, caption_dim=8),
}


@pytest.mark.parametrize("backbone", VARIANTS.values(), ids=VARIANTS)
def test_no_form_of_a_backbone_runs_an_op_that_is_not_counted(backbone):
    forward, both = (count_flops(backbone, B, backward=backward) for backward in (False, True))
    assert 2.9 < both.total / forward.total < 4


def test_recomputation_and_backend_do_not_count():
    options = {"gradient_checkpointing": True, "mixers": [Mamba(scan_backend="cuda")]}
    plain, other = (count_flops(ZigMa(**ONE_LAYER, **more), backward=True) for more in ({}, options))
    assert plain == other


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_mode_does_not_count(mode):
    with mode():
        assert count_flops(BY_HAND["dit"][0], B) == BY_HAND["dit"][1]
        assert count_flops(BY_HAND["zigma"][0], B, backward=True).matrix_products > BY_HAND["zigma"][1].matrix_products


def test_an_op_without_a_formula_is_an_error():
    class Odd(ZigMa):
        def run_layers(self, x, *arguments):
            return super().run_layers(x.cumprod(1), *arguments)

    with pytest.raises(UserError, match=r"count_flops: .*aten\.cumprod"):
        count_flops(Odd(**ONE_LAYER))


def test_neither_the_backbone_nor_random_numbers_are_touched():
    backbone = ZigMa(**ONE_LAYER)
    random_state = torch.get_rng_state()
    count_flops(backbone, backward=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in backbone.parameters())
