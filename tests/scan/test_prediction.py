import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from zigma_pl.core.errors import UserError
from zigma_pl.scan import ScanConfig
from zigma_pl.scan.prediction import (
    REFERENCE_RATES,
    RIDGE,
    SIGNAL_VARIANCE,
    _features,
    _patches,
    decay_rates,
    predicted_loss,
    random_fields,
)

QUICK = {"num_fields": 8, "times": (0.3, 0.7)}


def test_reference_rates_are_those_of_the_shipped_model(repository):
    np.testing.assert_allclose(decay_rates(repository / "models" / "portraits"), REFERENCE_RATES, rtol=1e-3)


def test_decay_rate_is_step_size_times_a(tmp_path):
    bias = np.log(np.expm1(np.array([0.1, 0.2])))  # softplus of it is 0.1 and 0.2
    weights = {"m.A_log": np.log([[1.0, 2.0], [1.0, 3.0]]), "m.dt_proj.bias": bias, "ssd.A_log": np.zeros(3)}
    save_file(weights, tmp_path / "model.safetensors")
    np.testing.assert_allclose(decay_rates(tmp_path, 1), [0.2])
    assert len(decay_rates(tmp_path, 4)) == 4


def test_folders_without_mamba_layers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors"):
        decay_rates(tmp_path)
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="Mamba"):
        decay_rates(tmp_path)


def test_features_are_the_taps_and_the_decaying_sums_along_the_order():
    generator = np.random.default_rng(0)
    state = generator.standard_normal((12, 2, 3)).astype(np.float32)
    order = generator.permutation(12)
    rates = (0.05, 0.7)
    features = _features(state, order, rates)
    assert features.shape == (12, 2, 1 + 3 * (1 + 3 + 2))
    for step, token in enumerate(order):
        expected = [state[order[step - lag]] if step >= lag else np.zeros((2, 3)) for lag in range(4)]
        for rate in rates:
            sums = sum(math.exp(-rate * lag) * state[order[step - lag]] for lag in range(step + 1))
            expected.append(math.sqrt(1 - math.exp(-2 * rate)) * sums)
        np.testing.assert_allclose(features[token, :, 0], 1)
        np.testing.assert_allclose(features[token, :, 1:], np.concatenate(expected, axis=-1), atol=1e-5)


def test_patches_are_tokens_in_raster_order():
    fields = np.arange(24).reshape(1, 4, 6)
    assert _patches(fields, 2)[:, 0].tolist()[:4] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]


def test_fields_have_the_spectrum_of_natural_images():
    fields = random_fields(64, 32, 32, seed=0)
    assert fields.shape == (64, 32, 32)
    assert fields.std() == pytest.approx(1)
    differences = [np.mean((fields[:, :, lag:] - fields[:, :, :-lag]) ** 2) for lag in (1, 2, 4, 8)]
    # The variance of differences grows with the logarithm of the distance.
    np.testing.assert_allclose(np.diff(differences), np.diff(differences).mean(), rtol=0.25)
    np.testing.assert_array_equal(fields, random_fields(64, 32, 32, seed=0))
    assert not np.array_equal(fields, random_fields(64, 32, 32, seed=1))


def test_single_token_can_only_use_itself():
    """The best estimate of one pixel is the one of Wiener; the loss is its error divided by t^2."""
    t = 0.5
    found = predicted_loss([np.zeros(1, dtype=int)], 1, 1, 1, patch_size=1, num_fields=200_000, times=(t,))
    signal, noise = SIGNAL_VARIANCE * (1 - t) ** 2, t**2
    assert found == pytest.approx(SIGNAL_VARIANCE * noise / (signal + noise) / t**2, rel=0.02 + RIDGE)


def test_orders_that_lead_to_neighbours_from_all_sides_have_smaller_losses():
    scans = [
        {"scheme": "sweep", "indices": (0, 1, 6, 7)},
        {"scheme": "sweep", "num_orders": 2},
        {"scheme": "sweep", "num_orders": 1},
    ]
    losses = [predicted_loss(ScanConfig(**scan).orders(16, 16), 16, 16, 8, **QUICK) for scan in scans]
    assert losses == sorted(losses)
    assert np.diff(losses).min() > 0.01
    assert predicted_loss(ScanConfig("random").orders(16, 16), 16, 16, 8, **QUICK) > losses[0] + 0.1


def test_only_orders_of_layers_that_exist_count():
    orders = ScanConfig("zigzag").orders(8, 8)
    shallow = predicted_loss(orders, 8, 8, 2, **QUICK)
    assert shallow == predicted_loss(orders[:2], 8, 8, 2, **QUICK)
    assert predicted_loss(orders, 8, 8, 8, **QUICK) < shallow


def test_faster_decay_forgets_what_is_a_row_away():
    sweep = ScanConfig("sweep", 1).orders(16, 16)
    slow, fast = (predicted_loss(sweep, 16, 16, 4, rates=rates, **QUICK) for rates in ((0.05,), (3.0,)))
    assert fast > slow + 0.01
