import hashlib
import json
import math

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from zigma_pl.core.class_paths import build_described
from zigma_pl.core.errors import UserError
from zigma_pl.scan import ScanConfig
from zigma_pl.scan.layers import (
    MAMBA2_RATES,
    REFERENCE_RATES,
    Attention,
    Path,
    Scan,
    cycled_layers,
    layers_of_scan,
    whole_path,
)
from zigma_pl.scan.prediction import RIDGE, SIGNAL_VARIANCE, _scanned, decay_rates, predicted_loss

QUICK = {"num_fields": 8, "times": (0.3, 0.7)}


def loss_of(orders, height, width, depth, rates=REFERENCE_RATES, **options):
    layers = cycled_layers([whole_path(order) for order in orders], [Scan(rates=rates)] * depth)
    return predicted_loss(layers, height, width, **options)


def test_committed_predictions_are_found_again(repository):
    """Predictions of experiments that were not run then must not change with the code."""
    folder = repository / "experiments" / "orders"
    numbers = json.loads((folder / "predictions_1024.json").read_text())
    assert numbers["rates"] == list(REFERENCE_RATES)
    sizes = numbers["height"], numbers["width"]
    for name in ("table1x_z_order8", "table1x_searched8"):
        scan = yaml.safe_load((repository / "experiments" / f"{name}.yaml").read_text())
        orders = build_described(scan["model"]["backbone"]["init_args"]["scan"], ScanConfig).orders(*sizes)
        found = loss_of(orders, *sizes, numbers["depth"], patch_size=numbers["patch_size"])
        assert found == pytest.approx(numbers["orders"][name]["predicted"], abs=2e-6)


def test_files_of_committed_predictions_are_unchanged(repository):
    hashes = {
        "predictions_1024.json": "1bbb2e416e858a2da155ddf6d8d36af6c699e77de53b64b89e48496ebbc4c626",
        "predictions_4096.json": "5e9e09dc07b15ba6c97bb7eafc965a90751ac69372c504388188d63222677fff",
    }
    for name, expected in hashes.items():
        assert hashlib.sha256((repository / "experiments" / "orders" / name).read_bytes()).hexdigest() == expected


def test_rates_of_mamba2_are_those_of_its_initialisation():
    fractions = (np.arange(2000) + 0.5) / 2000
    rates = np.exp(np.log(1e-3) + fractions[:, None] * np.log(100)) * (1 + 15 * fractions)
    np.testing.assert_allclose(np.quantile(rates, (np.arange(4) + 0.5) / 4), MAMBA2_RATES, rtol=1e-3)


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


def brute_force_scan(state, sequence, rates, num_taps):
    """Taps and memory of each token of one sequence, by token."""
    found = {}
    for step, token in enumerate(sequence):
        before = [state[sequence[step - lag]] if step >= lag else np.zeros(state.shape[1:]) for lag in range(4)]
        values = before[: num_taps + 1]
        for rate in rates:
            sums = sum(math.exp(-rate * lag) * state[sequence[step - lag]] for lag in range(step + 1))
            values.append(math.sqrt(1 - math.exp(-2 * rate)) * sums)
        found[token] = np.concatenate(values, axis=-1)
    return found


@pytest.mark.parametrize("length", [12, 4, 1])
@pytest.mark.parametrize("num_taps", [3, 1])
def test_scans_have_the_taps_and_the_decaying_sums_along_each_sequence(length, num_taps):
    generator = np.random.default_rng(0)
    state = generator.standard_normal((12, 2, 3)).astype(np.float32)
    order = generator.permutation(12)
    rates = (0.05, 0.7)
    features = _scanned(state, Path(order, length), rates, num_taps)
    assert features.shape == (12, 2, 3 * (1 + num_taps + 2))
    for first in range(0, 12, length):
        for token, expected in brute_force_scan(state, order[first : first + length], rates, num_taps).items():
            np.testing.assert_allclose(features[token], expected, atol=1e-5)


def test_single_token_can_only_use_itself():
    """The best estimate of one pixel is the one of Wiener; the loss is its error divided by t^2."""
    t = 0.5
    found = loss_of([np.zeros(1, dtype=int)], 1, 1, 1, patch_size=1, num_fields=200_000, times=(t,))
    signal, noise = SIGNAL_VARIANCE * (1 - t) ** 2, t**2
    assert found == pytest.approx(SIGNAL_VARIANCE * noise / (signal + noise) / t**2, rel=0.02 + RIDGE)


def test_orders_that_lead_to_neighbours_from_all_sides_have_smaller_losses():
    scans = [
        {"scheme": "sweep", "indices": (0, 1, 6, 7)},
        {"scheme": "sweep", "num_orders": 2},
        {"scheme": "sweep", "num_orders": 1},
    ]
    losses = [loss_of(ScanConfig(**scan).orders(16, 16), 16, 16, 8, **QUICK) for scan in scans]
    assert losses == sorted(losses)
    assert np.diff(losses).min() > 0.01
    assert loss_of(ScanConfig("random").orders(16, 16), 16, 16, 8, **QUICK) > losses[0] + 0.1


def test_only_orders_of_layers_that_exist_count():
    orders = ScanConfig("zigzag").orders(8, 8)
    shallow = loss_of(orders, 8, 8, 2, **QUICK)
    assert shallow == loss_of(orders[:2], 8, 8, 2, **QUICK)
    assert loss_of(orders, 8, 8, 8, **QUICK) < shallow


def test_faster_decay_forgets_what_is_a_row_away():
    sweep = ScanConfig("sweep", 1).orders(16, 16)
    slow, fast = (loss_of(sweep, 16, 16, 4, rates=rates, **QUICK) for rates in ((0.05,), (3.0,)))
    assert fast > slow + 0.01


def test_attention_lowers_the_loss_of_a_sweep_more_than_that_of_zigzags():
    losses = {}
    for scheme, num_orders in (("sweep", 1), ("zigzag", 8)):
        scan = ScanConfig(scheme, num_orders)
        for attention in (None, Attention(4)):
            templates = [Scan(), Scan(), Scan(), attention or Scan()] * 2
            losses[scheme, attention is None] = predicted_loss(layers_of_scan(scan, templates, 8, 8), 8, 8, **QUICK)
    gain = {scheme: losses[scheme, True] - losses[scheme, False] for scheme in ("sweep", "zigzag")}
    assert gain["sweep"] > gain["zigzag"] > 0.005
    assert losses["sweep", False] > losses["zigzag", False]


def test_layers_of_time_lower_the_loss_of_clips_of_slow_images():
    """Where nothing moves, a layer of time averages the noise of all frames."""
    scan = ScanConfig("zigzag", 8, video="factorized")
    whole = layers_of_scan(ScanConfig("zigzag", 8), [Scan()] * 6, 4, 4, 8)
    factorized = layers_of_scan(scan, [Scan()] * 6, 4, 4, 8)
    loss = {
        speed: [predicted_loss(layers, 4, 4, 8, speed=speed, **QUICK) for layers in (whole, factorized)]
        for speed in (0.05, 50)
    }
    assert loss[0.05][1] < loss[0.05][0] - 0.1
    assert loss[50][1] > loss[0.05][1] + 0.1


def test_clip_of_one_frame_is_an_image():
    layers = layers_of_scan(ScanConfig("zigzag", 8), [Scan()] * 3, 4, 4)
    assert predicted_loss(layers, 4, 4, 1, **QUICK) == predicted_loss(layers, 4, 4, **QUICK)
