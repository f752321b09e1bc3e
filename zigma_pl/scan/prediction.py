"""A prediction of the validation loss of a set of orders, without training: docs/orders.md derives the formula.

The images are random fields with the spectrum of natural images. Each layer of the network is linear: along its order
it has the taps of the convolution and the memory of the state-space layer, whose decay rates come from one trained
reference model. Its weights are the best ones, the same at every token. What remains of the loss after the last layer
is the prediction.

Axes: L tokens, B fields, C pixels of a patch, K decay rates, P features.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zigma_pl.core.errors import UserError

# Quantiles of the decay rates of models/portraits, per step: `decay_rates("models/portraits")`.
REFERENCE_RATES = (0.01138, 0.04064, 0.12477, 0.43564)
NUM_TAPS = 3  # tokens before the current one that the convolution of Mamba reads
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
SIGNAL_VARIANCE = 0.75  # of three equal colour channels with standard deviation 1/2
RIDGE = 1e-3  # penalty on the squared weights, relative to the variance of a pixel
MIN_FIELDS, MIN_TOKENS = 16, 2**14  # at least so many fields, and tokens of all fields together


def predicted_loss(
    orders: Sequence[np.ndarray],
    height: int,
    width: int,
    depth: int,
    *,
    patch_size: int = 2,
    rates: Sequence[float] = REFERENCE_RATES,
    num_fields: int | None = None,
    times: Sequence[float] = TIMES,
    seed: int = 0,
) -> float:
    """Return the predicted velocity loss per pixel of a backbone with these orders; only differences have a meaning.

    Args:
        orders: each (height * width,); layer i uses order i modulo their number.
        height, width: size of the token grid.
        depth: number of layers.
        patch_size: pixels per side of a token.
        rates: K decay rates per step.
        num_fields: B, number of fields that expectations are estimated from; None for enough of them.
        times: 0 < t < 1; the loss is the mean over them.
        seed: seed of the fields and of the noise, which are the same for all orders.
    """
    num_fields = num_fields or max(MIN_FIELDS, MIN_TOKENS // (height * width))
    fields = random_fields(num_fields, height * patch_size, width * patch_size, seed)
    data = _patches(fields * np.sqrt(SIGNAL_VARIANCE), patch_size)
    noise = _patches(np.random.default_rng([seed, 1]).standard_normal(fields.shape), patch_size)
    losses = []
    for t in times:
        noisy = ((1 - t) * data + t * noise) / np.float32(np.hypot((1 - t) * np.sqrt(SIGNAL_VARIANCE), t))
        # The velocity is noise - data = (x_t - data) / t, so that its error is that of the data, divided by t.
        losses.append(_denoising_error(data, noisy, orders, depth, rates) / t**2)
    return float(np.mean(losses))


def decay_rates(folder: str | Path, num_rates: int = len(REFERENCE_RATES)) -> tuple[float, ...]:
    """Return quantiles of the decay rates per step of an exported Mamba model, over its layers, channels and states.

    A state decays by exp(-rate) per token, rate = dt * |A|. The step size dt is that of the bias alone.

    Raises:
        UserError: the folder has no weights of Mamba layers.
    """
    from safetensors.numpy import load_file

    path = Path(folder) / "model.safetensors"
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


def random_fields(num_fields: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return Gaussian fields with variance 1 and the power spectrum 1 / frequency^2, (num_fields, height, width)."""
    # A window of a larger field, because the spectrum makes fields periodic.
    frequencies = np.hypot(np.fft.fftfreq(2 * height)[:, None] * height, np.fft.fftfreq(2 * width) * width)
    frequencies[0, 0] = np.inf
    white = np.random.default_rng([seed, 0]).standard_normal((num_fields, 2 * height, 2 * width))
    fields = np.fft.ifft2(np.fft.fft2(white) / frequencies).real[:, :height, :width]
    return fields / fields.std()


def _denoising_error(
    data: np.ndarray, noisy: np.ndarray, orders: Sequence[np.ndarray], depth: int, rates: Sequence[float]
) -> float:
    """Return the mean squared error per pixel of the last layer's estimate of the data, both (L, B, C)."""
    target = data.reshape(-1, data.shape[-1])
    state = noisy
    for layer in range(depth):
        features = _features(state, orders[layer % len(orders)], rates)
        flat = features.reshape(-1, features.shape[-1])
        gram = (flat.T @ flat).astype(np.float64) / len(flat)
        weights = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), flat.T @ target / len(flat))
        estimate = flat @ weights.astype(np.float32)
        error = float(np.mean((estimate - target) ** 2))
        state = np.concatenate([noisy, (estimate / estimate.std()).reshape(data.shape)], axis=-1)
    return error


def _features(state: np.ndarray, order: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Return what a layer knows at each token: state, taps, memory and a constant, (L, B, S) -> (L, B, P)."""
    num_tokens, num_fields, num_states = state.shape
    along = state[order]
    found = np.zeros((num_tokens, num_fields, 1 + NUM_TAPS + len(rates), num_states), dtype=np.float32)
    found[:, :, 0] = along
    for lag in range(1, min(NUM_TAPS, num_tokens - 1) + 1):
        found[lag:, :, lag] = along[:-lag]
    decays = np.exp(-np.asarray(rates, dtype=np.float32))[:, None]
    gains = np.sqrt(1 - decays**2)  # the memory of white noise has the variance of the noise
    memory = np.zeros((num_fields, len(rates), num_states), dtype=np.float32)
    for step in range(num_tokens):
        memory = decays * memory + gains * along[step][:, None]
        found[step, :, 1 + NUM_TAPS :] = memory
    features = np.ones((num_tokens, num_fields, found[0, 0].size + 1), dtype=np.float32)
    features[order, :, 1:] = found.reshape(num_tokens, num_fields, -1)
    return features


def _patches(fields: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut fields into tokens, (B, height * patch_size, width * patch_size) -> (L, B, patch_size^2) float32."""
    num_fields, height, width = fields.shape
    cut = fields.reshape(num_fields, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, num_fields, patch_size**2).astype(np.float32)
