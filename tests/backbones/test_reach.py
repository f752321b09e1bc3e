"""Which tokens of an image influence which others through one layer, for all backbones."""

import pytest
import torch
from backbones import tiny
from backbones.tiny import reached

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.scan import visit_order
from zigma_pl.scan.schedule import ScanConfig

NUM_TOKENS = 6  # 2 x 3
EVERYTHING = set(range(NUM_TOKENS))
CLASSES = ({"num_classes": 4}, {"class": Condition(torch.tensor([2]))})
CAPTIONS = ({"caption_dim": 5}, {"caption": Condition(torch.ones(1, 7, 5))})
under_each_condition = pytest.mark.parametrize(
    ("options", "conditions"), [({}, None), CLASSES, CAPTIONS], ids=["none", "classes", "captions"]
)


@under_each_condition
@pytest.mark.parametrize("scheme", ["sweep", "zigzag", "hilbert", "random"])
def test_a_layer_of_zigma_reaches_what_its_order_visits_later(scheme, options, conditions):
    for index in range(8 if conditions is None else 2):
        backbone = tiny.build(ZigMa, depth=1, scan=ScanConfig(scheme, indices=(index,)), **options)
        order = visit_order(scheme, 2, 3, index=index).tolist()
        for step, token in enumerate(order):
            assert reached(backbone, token, conditions) == set(order[step:])


@pytest.mark.parametrize("depth", range(1, 9))
def test_layers_of_zigma_reach_further_together(depth):
    """Through each further layer, a token reaches all tokens that are visited after one already reached."""
    backbone = tiny.build(ZigMa, depth=depth)
    expected = {4}
    for index in range(depth):
        order = visit_order("zigzag", 2, 3, index=index).tolist()
        expected = set(order[min(map(order.index, expected)) :])
    assert reached(backbone, 4) == expected


@under_each_condition
@pytest.mark.parametrize("backbone_class", [VisionMamba, ParallelMamba, DiT, UViT])
def test_one_layer_of_the_baselines_reaches_everything(backbone_class, options, conditions):
    scan = {"scan": ScanConfig(num_orders=8)} if backbone_class is ParallelMamba else {}
    backbone = tiny.build(backbone_class, depth=1, **scan, **options)
    for token in range(NUM_TOKENS):
        assert reached(backbone, token, conditions) == EVERYTHING
