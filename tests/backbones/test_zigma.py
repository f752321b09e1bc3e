import functools

import pytest
import torch
from backbones import tiny

from zigma_pl.backbones import ZigMa
from zigma_pl.models.backbones.mixer_backbone import SIZES
from zigma_pl.scan.paths import visit_order
from zigma_pl.scan.schedule import ScanConfig

build = functools.partial(tiny.build, ZigMa)


def test_layers_cycle_through_the_orders_of_the_token_grid():
    backbone = build(depth=5, scan=ScanConfig(num_orders=3))
    for layer in range(5):
        visit = backbone.visit(layer)
        assert visit.order.tolist() == visit_order("zigzag", 2, 3, index=layer % 3).tolist()
        assert visit.order.dtype == torch.int32
        assert visit.order[visit.inverse.long()].tolist() == list(range(6))
        assert visit.positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert len([name for name, _ in backbone.named_buffers() if name.startswith("visit_order")]) == 3


def test_scheme_costs_no_parameter():
    counts = {build(scan=ScanConfig(scheme=s, num_orders=k)).num_parameters() for s, k in [("sweep", 1), ("zigzag", 8)]}
    assert len(counts) == 1


def test_order_matters():
    x, t = tiny.draw()
    sweep, zigzag = (build(scan=ScanConfig(scheme=s, num_orders=1)) for s in ("sweep", "zigzag"))
    assert not torch.allclose(sweep(x, t), zigzag(x, t))


def test_named_sizes_count_as_their_transformer_namesakes():
    millions = {}
    for size in SIZES:
        with tiny.without_values():
            millions[size] = ZigMa(4, 32, 32, patch_size=2, size=size).num_parameters() / 1e6
    # DiT-S, B, L, XL have 33, 130, 458 and 675 million.
    for size, expected in {"S": 33, "B": 130, "L": 458, "XL": 675}.items():
        assert millions[size] == pytest.approx(expected, rel=0.05)
