import math

import numpy as np
import pytest

from zigma_pl.scan.heads import attended, chosen_kernels, possible_kernels, smallest_scale, weights
from zigma_pl.scan.layers import Attention


def test_weights_are_the_softmax_of_the_formula():
    grid, centre, scale, head_dim = (3, 4), (1, -1), 0.8, 16
    found = weights(grid, (centre, scale), head_dim, np.array([5, 0]))
    for row, query in enumerate([(1, 1), (0, 0)]):
        expected = []
        for key in np.ndindex(grid):
            square = sum((k - q - c) ** 2 for k, q, c in zip(key, query, centre, strict=True))
            expected.append(math.exp(4 * math.exp(-square / (2 * scale**2))))
        np.testing.assert_allclose(found[row], np.array(expected) / sum(expected), rtol=1e-5)


def test_scale_is_that_at_which_a_head_has_as_many_channels_as_it_distinguishes_positions():
    assert smallest_scale((32, 32), 64) == pytest.approx(4 / math.sqrt(2 * math.pi))
    assert smallest_scale((64, 64), 64) == pytest.approx(2 * smallest_scale((32, 32), 64))
    assert smallest_scale((16, 16, 16), 64) == pytest.approx(4 / math.sqrt(2 * math.pi))
    # The trace of the logits, one for each token, is d times their largest eigenvalue.
    grid, head_dim = (32, 32), 64
    positions = np.indices(grid).reshape(2, -1).T
    squares = ((positions[:, None] - positions[None]) ** 2).sum(-1)
    logits = np.exp(-squares / (2 * smallest_scale(grid, head_dim) ** 2))
    assert np.linalg.eigvalsh(logits).max() == pytest.approx(len(logits) / head_dim, rel=0.15)


def test_kernels_exist_for_images_and_clips_of_every_size():
    assert len(possible_kernels((8, 8), 64)) == 25 + 3
    assert len(possible_kernels((4, 8, 8), 64)) == 125 + 3
    assert len(possible_kernels((1, 2), 64)) == 3 + 3


def test_heads_choose_the_displacement_that_the_target_lies_at():
    generator = np.random.default_rng(0)
    state = generator.standard_normal((256, 8, 2)).astype(np.float32)
    target = np.roll(state.reshape(16, 16, 8, 2), 1, axis=0).reshape(256, 8, 2)  # the token above
    kernels = chosen_kernels(state, target, Attention(2), (16, 16), 1e-3)
    assert len(kernels) == 2
    assert kernels[0] == ((-1, 0), smallest_scale((16, 16), 64))


def test_attended_state_is_the_weighted_mean_of_all_tokens():
    state = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    kernel = ((0, 1), 0.7)
    expected = np.einsum("qk,kbs->qbs", weights((2, 3), kernel, 64, np.arange(6)), state)
    np.testing.assert_allclose(attended(state, kernel, 64, (2, 3)), expected, atol=1e-6)
