"""A prediction of the validation loss of a set of orders, without training: docs/orders.md derives the formula.

The images are random fields with the spectrum of natural images, or clips of such fields. Each layer of the network is
linear: along its order it has the taps of the convolution and the memory of the state-space layer, whose decay rates
come from one trained reference model; a layer of attention has the kernels of its heads. Its weights are the best ones,
the same at every token. What remains of the loss after the last layer is the prediction.

Axes: L tokens, B fields, C pixels of a patch, S channels of the state, K decay rates, P features.
"""

from collections.abc import Sequence
from pathlib import Path as FilePath

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.fields import SPEED, random_clips, tokens_of
from zigma_pl.scan.heads import attended, chosen_kernels
from zigma_pl.scan.layers import REFERENCE_RATES, Layer, Path, Scan

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
SIGNAL_VARIANCE = 0.75  # of three equal colour channels with standard deviation 1/2
RIDGE = 1e-3  # penalty on the squared weights, relative to the variance of a pixel
MIN_FIELDS, MIN_TOKENS = 16, 2**14  # at least so many fields, and tokens of all fields together


def predicted_loss(
    layers: Sequence[Layer],
    height: int,
    width: int,
    num_frames: int | None = None,
    *,
    patch_size: int = 2,
    num_fields: int | None = None,
    times: Sequence[float] = TIMES,
    speed: float = SPEED,
    seed: int = 0,
) -> float:
    """Return the predicted velocity loss per pixel of a backbone with these layers; only differences have a meaning.

    Args:
        layers: the layers in their sequence.
        height, width: size of the token grid.
        num_frames: number of frames of a clip; None for an image.
        patch_size: pixels per side of a token.
        num_fields: B, number of fields that expectations are estimated from; None for enough of them.
        times: 0 < t < 1; the loss is the mean over them.
        speed: see `zigma_pl.scan.fields.random_clips`.
        seed: seed of the fields and of the noise, which are the same for all orders.
    """
    grid = (height, width) if num_frames is None else (num_frames, height, width)
    num_fields = num_fields or max(MIN_FIELDS, MIN_TOKENS // int(np.prod(grid)))
    clips = random_clips(num_fields, num_frames or 1, height * patch_size, width * patch_size, seed, speed)
    data = tokens_of(clips * np.sqrt(SIGNAL_VARIANCE), patch_size)
    noise = tokens_of(np.random.default_rng([seed, 1]).standard_normal(clips.shape), patch_size)
    losses = []
    for t in times:
        noisy = ((1 - t) * data + t * noise) / np.float32(np.hypot((1 - t) * np.sqrt(SIGNAL_VARIANCE), t))
        # The velocity is noise - data = (x_t - data) / t, so that its error is that of the data, divided by t.
        losses.append(_denoising_error(data, noisy, layers, grid) / t**2)
    return float(np.mean(losses))


def decay_rates(folder: str | FilePath, num_rates: int = len(REFERENCE_RATES)) -> tuple[float, ...]:
    """Return quantiles of the decay rates per step of an exported Mamba model, over its layers, channels and states.

    A state decays by exp(-rate) per token, rate = dt * |A|. The step size dt is that of the bias alone.

    Raises:
        UserError: the folder has no weights of Mamba layers.
    """
    from safetensors.numpy import load_file

    path = FilePath(folder) / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: pass the folder of an exported model, such as models/portraits")
    weights = load_file(path)
    rates = [
        (np.logaddexp(0, weights[name.replace("A_log", "dt_proj.bias")].astype(float))[:, None] * np.exp(log)).reshape(
            -1
        )
        for name, log in weights.items()
        if name.endswith(".A_log") and log.ndim == 2
    ]
    if not rates:
        raise UserError(f"{path} has no Mamba layers: pass a model with zigma_pl.mixers.Mamba")
    quantiles = np.quantile(np.concatenate(rates), (np.arange(num_rates) + 0.5) / num_rates)
    return tuple(float(rate) for rate in quantiles)


def _denoising_error(data: np.ndarray, noisy: np.ndarray, layers: Sequence[Layer], grid: tuple[int, ...]) -> float:
    """Return the mean squared error per pixel of the last layer's estimate of the data, both (L, B, C)."""
    target = data.reshape(-1, data.shape[-1])
    state = noisy
    for layer in layers:
        features = _features(state, data, layer, grid)
        flat = features.reshape(-1, features.shape[-1])
        gram = (flat.T @ flat).astype(np.float64) / len(flat)
        weights = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), flat.T @ target / len(flat))
        estimate = flat @ weights.astype(np.float32)
        error = float(np.mean((estimate - target) ** 2))
        state = np.concatenate([noisy, (estimate / estimate.std()).reshape(data.shape)], axis=-1)
    return error


def _features(state: np.ndarray, data: np.ndarray, layer: Layer, grid: tuple[int, ...]) -> np.ndarray:
    """Return what a layer knows at each token, and a constant, (L, B, S) -> (L, B, P)."""
    constant = np.ones((*state.shape[:2], 1), dtype=np.float32)
    if isinstance(layer, Scan):
        return np.concatenate(
            [constant, *(_scanned(state, path, layer.rates, layer.num_taps) for path in layer.paths)], axis=-1
        )
    kernels = chosen_kernels(state, data, layer, grid, RIDGE)
    return np.concatenate(
        [constant, state, *(attended(state, kernel, layer.head_dim, grid) for kernel in kernels)], axis=-1
    )


def _scanned(state: np.ndarray, path: Path, rates: Sequence[float], num_taps: int) -> np.ndarray:
    """Return what a scan knows at each token: state, taps and memory, (L, B, S) -> (L, B, (1 + num_taps + K) S)."""
    num_tokens, num_fields, num_states = state.shape
    length, num_sequences = path.length, num_tokens // path.length
    along = state[path.order].reshape(num_sequences, length, num_fields, num_states)
    along = along.swapaxes(0, 1).reshape(length, num_sequences * num_fields, num_states)
    found = np.zeros((length, along.shape[1], 1 + num_taps + len(rates), num_states), dtype=np.float32)
    found[:, :, 0] = along
    for lag in range(1, min(num_taps, length - 1) + 1):
        found[lag:, :, lag] = along[:-lag]
    decays = np.exp(-np.asarray(rates, dtype=np.float32))[:, None]
    gains = np.sqrt(1 - decays**2)  # the memory of white noise has the variance of the noise
    memory = np.zeros((along.shape[1], len(rates), num_states), dtype=np.float32)
    for step in range(length):
        memory = decays * memory + gains * along[step][:, None]
        found[step, :, 1 + num_taps :] = memory
    features = np.empty((num_tokens, num_fields, found[0, 0].size), dtype=np.float32)
    by_sequence = found.reshape(length, num_sequences, num_fields, -1).swapaxes(0, 1)
    features[path.order] = by_sequence.reshape(num_tokens, num_fields, -1)
    return features
