"""What attention with position embeddings adds to the linear model of docs/orders.md: one kernel for each head.

A head gives the token at displacement m from the query's centre the weight softmax(sqrt(d) exp(-|m|^2 / (2 s^2))), with
d channels per head. The scale s is at least the one at which d channels can tell the positions of all tokens apart.

Axes: L tokens, B fields, S channels of the state, T sampled tokens.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from zigma_pl.scan.layers import Attention

FARTHEST = 2  # tokens per axis, of the centre of a kernel from the query
BROADER = (2, 4, 8)  # scales of kernels around the query itself, in units of the smallest scale
NUM_SAMPLED = 256  # tokens from which the kernels are chosen

Kernel = tuple[tuple[int, ...], float]  # displacement of the centre in tokens, scale s in tokens


def smallest_scale(grid: Sequence[int], head_dim: int) -> float:
    """Return the smallest scale s of a kernel, in tokens: (tokens / d)^(1 / A) / sqrt(2 pi) on a grid with A axes."""
    return float((math.prod(grid) / head_dim) ** (1 / len(grid)) / math.sqrt(2 * math.pi))


def possible_kernels(grid: Sequence[int], head_dim: int) -> list[Kernel]:
    """Return the kernels among which a head can choose."""
    smallest = smallest_scale(grid, head_dim)
    reach = [range(-min(FARTHEST, size - 1), min(FARTHEST, size - 1) + 1) for size in grid]
    sharp = [(centre, smallest) for centre in product(*reach)]
    return sharp + [((0,) * len(grid), smallest * factor) for factor in BROADER]


def chosen_kernels(
    state: np.ndarray, target: np.ndarray, attention: Attention, grid: tuple[int, ...], ridge: float
) -> list[Kernel]:
    """Return the kernels of a layer's heads, one after the other the one that lowers the error of the estimate most.

    Args:
        state: (L, B, S), what the layer reads.
        target: (L, B, C), what it estimates.
        attention: the layer.
        grid: size of the token grid along each axis, with L tokens.
        ridge: penalty on the squared weights.
    """
    num_tokens, num_fields, num_states = state.shape
    kernels = possible_kernels(grid, attention.head_dim)
    tokens = _sampled(num_tokens)
    flat = state.reshape(num_tokens, -1)
    parts = [np.ones((len(tokens), num_fields, 1), np.float32), state[tokens]]
    for kernel in kernels:
        found = _sampled_weights(grid, kernel, attention.head_dim) @ flat
        parts.append(found.reshape(len(tokens), num_fields, num_states))
    features = np.concatenate(parts, axis=-1).reshape(len(tokens) * num_fields, -1)
    wanted = target[tokens].reshape(len(features), -1)
    gram = (features.T @ features).astype(np.float64) / len(features)
    gram[np.diag_indices_from(gram)] += ridge
    products = (features.T @ wanted).astype(np.float64) / len(features)
    _eliminate(gram, products, slice(0, 1 + num_states))
    left = list(range(len(kernels)))
    chosen: list[int] = []
    while left and len(chosen) < attention.num_heads:
        columns = 1 + num_states * (1 + np.array(left)[:, None]) + np.arange(num_states)
        blocks = gram[columns[:, :, None], columns[:, None, :]]
        explained = np.sum(products[columns] * np.linalg.solve(blocks, products[columns]), axis=(1, 2))
        best = left.pop(int(np.argmax(explained)))
        chosen.append(best)
        first = 1 + num_states * (1 + best)
        _eliminate(gram, products, slice(first, first + num_states))
    return [kernels[index] for index in chosen]


def _eliminate(gram: np.ndarray, products: np.ndarray, columns: slice) -> None:
    """Subtract, in place, what some features explain of the others and of the target."""
    both = np.concatenate([gram, products], axis=1)
    both -= both[:, columns] @ np.linalg.solve(gram[columns, columns], both[columns])
    gram[:], products[:] = both[:, : len(gram)], both[:, len(gram) :]


def attended(state: np.ndarray, kernel: Kernel, head_dim: int, grid: tuple[int, ...]) -> np.ndarray:
    """Return the mean of the state with the weights of a kernel at each token, (L, B, S) -> (L, B, S)."""
    flat = state.reshape(len(state), -1)
    return (weights(grid, kernel, head_dim, np.arange(len(state))) @ flat).reshape(state.shape)


def weights(grid: tuple[int, ...], kernel: Kernel, head_dim: int, tokens: np.ndarray) -> np.ndarray:
    """Return the weights of all tokens for the queries at T tokens, (T, L) float32; each row has the sum 1."""
    centre, scale = kernel
    axes = [np.arange(1 - size, size) - shift for size, shift in zip(grid, centre, strict=True)]
    squares = sum(np.meshgrid(*(axis.astype(float) ** 2 for axis in axes), indexing="ij"))
    table = np.exp(math.sqrt(head_dim) * np.exp(-squares / (2 * scale**2))).astype(np.float32).reshape(-1)
    found = table[_displacements(grid)[tokens]]
    return found / found.sum(axis=1, keepdims=True)


@lru_cache(maxsize=2)
def _displacements(grid: tuple[int, ...]) -> np.ndarray:
    """Return the index, in a table of all displacements, of that from each token to each other, (L, L) int32."""
    sizes = tuple(2 * size - 1 for size in grid)
    index = np.asarray(np.ravel_multi_index(tuple(np.indices(grid).reshape(len(grid), -1)), sizes), dtype=np.int32)
    origin = np.ravel_multi_index(tuple(size - 1 for size in grid), sizes)
    return index[None, :] - index[:, None] + np.int32(origin)


def _sampled(num_tokens: int) -> np.ndarray:
    """Return the tokens from which the kernels are chosen, (T,)."""
    return np.random.default_rng(0).permutation(num_tokens)[:NUM_SAMPLED]


@lru_cache(maxsize=32)  # as many as an image has kernels; 32 MB at 1,024 tokens
def _sampled_weights(grid: tuple[int, ...], kernel: Kernel, head_dim: int) -> np.ndarray:
    return weights(grid, kernel, head_dim, _sampled(math.prod(grid)))
