import json
import math

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import read_record
from zigma_pl.evaluation.order_agreement import (
    HeldOut,
    RankedPairs,
    agreement,
    fitted_losses,
    largest_seed_difference,
    measured_orders,
    ranked_pairs,
)
from zigma_pl.scan import ScanConfig
from zigma_pl.scan.layers import MAMBA2_RATES, REFERENCE_RATES, Attention, Scan


def test_line_through_the_losses_agrees_perfectly():
    found = agreement([0.1, 0.2, 0.3, 0.4], [5, 7, 9, 11], 0.05)
    assert found.correlation == pytest.approx(1)
    assert found.rank_correlation == pytest.approx(1)
    assert found.left_out == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (found.pairs.right, found.pairs.number) == (1, 6)


def test_left_out_experiment_is_predicted_from_the_others_only():
    found = agreement([0.1, 0.2, 0.9], [1, 2, 3], 0)
    assert found.left_out == pytest.approx([-0.5, 0.5, 0.3])


def test_pairs_within_the_difference_of_seeds_do_not_count_and_ties_count_half():
    losses, predictions = [0.100, 0.1005, 0.2, 0.3], [1, 0, 2, 2]
    found = agreement(losses, predictions, 0.001)
    assert found.pairs.number == 5
    assert found.pairs.right == pytest.approx(4.5 / 5)
    assert found.rank_correlation == pytest.approx(np.corrcoef([0, 1, 2, 3], [1, 0, 2.5, 2.5])[0, 1])


def test_constant_losses_have_no_correlation():
    assert math.isnan(agreement([0.1, 0.1, 0.1], [1, 2, 3], 0).rank_correlation)


@pytest.mark.parametrize("prediction", [0, 3])
def test_equal_predictions_predict_the_mean_of_the_others(prediction):
    found = agreement([0.1, 0.2, 0.6], [prediction] * 3, 0)
    assert found.left_out == pytest.approx([0.4, 0.35, 0.15])
    assert math.isnan(found.correlation)


def test_records_of_the_pilot(repository):
    found = measured_orders(sorted((repository / "results" / "pilot").glob("table1*.json")))
    means = [np.mean(experiment.losses) for experiment in found.values()]
    assert means == sorted(means)
    opposite = found["table1x_sweep4_opposite"]
    orders = ScanConfig("sweep", indices=(0, 1, 6, 7)).orders(32, 32)
    assert [np.array_equal(layer.paths[0].order, orders[i % 4]) for i, layer in enumerate(opposite.layers)] == [
        True
    ] * 16
    assert (opposite.grid, opposite.patch_size) == ((32, 32), 2)
    assert len(found["table1_zigzag8"].losses) >= 4
    assert 0.0009 < largest_seed_difference(found.values()) < 0.0011


def test_pairs_are_counted_by_the_number_of_their_held_out_experiments():
    losses, predictions, held_out = [1, 2, 3, 4], [1, 3, 2, 4], [False, True, True, False]
    found = {number: ranked_pairs(losses, predictions, 0.5, held_out, (number,)) for number in (0, 1, 2)}
    assert found[0] == RankedPairs(1, 1)
    assert found[1] == RankedPairs(1, 4)
    assert found[2] == RankedPairs(0, 1)
    assert ranked_pairs(losses, predictions, 0.5, held_out) == RankedPairs(5 / 6, 6)
    none = ranked_pairs(losses, predictions, 1.5, held_out, (2,))
    assert none.number == 0
    assert math.isnan(none.right)


def test_numbers_are_fitted_to_the_known_experiments_only():
    numbers = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 3)]
    losses = [5, 7, 4, 6, 100]
    assert fitted_losses(numbers, losses, [True] * 4 + [False]) == pytest.approx([5, 7, 4, 6, 6])


def test_list_of_held_out_experiments_is_that_of_the_committed_predictions(repository):
    folder = repository / "experiments" / "orders"
    held_out = read_record(HeldOut, folder / "held_out.json")
    first = {name for name, commit in held_out.experiments.items() if commit == "dec706e"}
    assert len(first) == 15
    predicted = {name: json.loads((folder / name).read_text())["orders"] for name in held_out.predictions}
    assert first <= set(predicted["predictions_1024.json"])
    assert len(first & set(predicted["predictions_4096.json"])) == 8
    for name in held_out.experiments:
        assert (repository / "experiments" / f"{name}.yaml").is_file()
        assert any(name in each for each in predicted.values())


def test_layers_of_records_are_those_of_their_mixers(repository):
    pilot = repository / "results" / "pilot"
    found = measured_orders(
        pilot / f"table7_{name}.json" for name in ("hybrid_last_zigzag8", "mamba1_sweep", "attention")
    )
    hybrid = found["table7_hybrid_last_zigzag8"].layers
    assert [isinstance(layer, Scan) for layer in hybrid] == [True] * 14 + [False] * 2
    assert hybrid[-1] == Attention(7, 64)
    assert {layer.rates for layer in hybrid[:14]} == {MAMBA2_RATES}
    assert {layer.rates for layer in found["table7_mamba1_sweep"].layers} == {REFERENCE_RATES}
    assert set(found["table7_attention"].layers) == {Attention(7, 64)}
    clips = measured_orders(pilot / f"table4_{name}.json" for name in ("sst", "bidirectional"))
    sst, bidirectional = (clips[f"table4_{name}"] for name in ("sst", "bidirectional"))
    assert sst.grid == bidirectional.grid == (16, 16, 16)
    assert [layer.paths[0].length for layer in sst.layers[:6]] == [256, 256, 16] * 2
    forward, backward = bidirectional.layers[5].paths
    np.testing.assert_array_equal(forward.order, np.arange(4096))
    np.testing.assert_array_equal(backward.order, forward.order[::-1])


@pytest.mark.parametrize("name", ["table6_dit", "table7_linear_attention"])
def test_backbones_and_mixers_without_a_prediction_are_refused(name, repository):
    with pytest.raises(UserError, match=name):
        measured_orders([repository / "results" / "pilot" / f"{name}.json"])


def test_seeds_with_other_scans_are_refused(repository, tmp_path):
    source = json.loads((repository / "results" / "pilot" / "table1_sweep.json").read_text())
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(source))
    source["row"] += "_seed1"
    source["protocol"]["backbone"]["scan"]["scheme"] = "zigzag"
    second.write_text(json.dumps(source))
    with pytest.raises(UserError, match="differs"):
        measured_orders([first, second])


def test_a_loss_that_is_not_a_number_is_refused(repository, tmp_path):
    record = json.loads((repository / "results" / "pilot" / "table1_zigzag8.json").read_text())
    record["scores"]["validation_loss"]["value"] = math.nan
    (tmp_path / "diverged.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="diverged"):
        measured_orders([tmp_path / "diverged.json"])
