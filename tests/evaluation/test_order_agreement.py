import json
import math

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.order_agreement import agreement, largest_seed_difference, measured_orders


def test_line_through_the_losses_agrees_perfectly():
    found = agreement([0.1, 0.2, 0.3, 0.4], [5, 7, 9, 11], 0.05)
    assert found.correlation == pytest.approx(1)
    assert found.rank_correlation == pytest.approx(1)
    assert found.left_out == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (found.pairs_right, found.num_pairs) == (1, 6)


def test_left_out_experiment_is_predicted_from_the_others_only():
    found = agreement([0.1, 0.2, 0.9], [1, 2, 3], 0)
    assert found.left_out == pytest.approx([-0.5, 0.5, 0.3])


def test_pairs_within_the_difference_of_seeds_do_not_count_and_ties_count_half():
    losses, predictions = [0.100, 0.1005, 0.2, 0.3], [1, 0, 2, 2]
    found = agreement(losses, predictions, 0.001)
    assert found.num_pairs == 5
    assert found.pairs_right == pytest.approx(4.5 / 5)
    assert found.rank_correlation == pytest.approx(np.corrcoef([0, 1, 2, 3], [1, 0, 2.5, 2.5])[0, 1])


def test_constant_losses_have_no_correlation():
    assert math.isnan(agreement([0.1, 0.1, 0.1], [1, 2, 3], 0).rank_correlation)


def test_records_of_the_pilot(repository):
    found = measured_orders(sorted((repository / "results" / "pilot").glob("table1*.json")))
    assert next(iter(found)) == "table1x_sweep4_opposite"
    opposite = found["table1x_sweep4_opposite"]
    assert opposite.scan.indices == (0, 1, 6, 7)
    assert (opposite.height, opposite.width, opposite.depth, opposite.patch_size) == (32, 32, 16, 2)
    assert len(found["table1_zigzag8"].losses) >= 4
    assert 0.0009 < largest_seed_difference(found.values()) < 0.0011


def test_other_records_are_refused(repository, tmp_path):
    with pytest.raises(UserError):
        measured_orders([repository / "results" / "pilot" / "table6_dit.json"])
    source = json.loads((repository / "results" / "pilot" / "table1_sweep.json").read_text())
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(source))
    source["row"] += "_seed1"
    source["protocol"]["backbone"]["scan"]["scheme"] = "zigzag"
    second.write_text(json.dumps(source))
    with pytest.raises(UserError, match="differs"):
        measured_orders([first, second])
