"""The backbones that are timed: how they are built and executed, and that a wrong one is found."""

from dataclasses import replace

import pytest
import torch

from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.models import (
    FAMILIES,
    Contestant,
    ModelOptions,
    build,
    contestants_named,
    execute,
    in_training,
    make_inputs,
)
from zigma_pl.core.errors import UserError
from zigma_pl.ops import selective_scan as scan_op
from zigma_pl.runtime.compiling import regions
from zigma_pl.runtime.graphed_training import GraphedTraining
from zigma_pl.scan.schedule import ScanConfig

CPU = torch.device("cpu")
OPTIONS = ModelOptions(CPU, torch.float32, repeats=1, size=None, width=64, depth=3)
EAGER = {name: contestant for name, contestant in FAMILIES.items() if contestant.execution == "eager"}


ONE_OF_EACH_NETWORK = {(contestant.architecture, contestant.mixers): name for name, contestant in EAGER.items()}


@pytest.mark.parametrize("contestant", map(EAGER.get, ONE_OF_EACH_NETWORK.values()), ids=ONE_OF_EACH_NETWORK.values())
def test_right_backbones_have_no_findings(contestant):
    assert not list(findings({"it": contestant}, OPTIONS, training=True))


@pytest.mark.parametrize("name", ["zigzag8", "mamba2", "dit", "factorized-fast"])
def test_right_backbones_of_captioned_clips_have_no_findings(name):
    contestants, options = {name: replace(FAMILIES[name], has_captions=True)}, replace(OPTIONS, num_frames=5)
    assert not list(findings(contestants, options, training=True))


def test_inputs_have_captions_of_different_lengths():
    backbone = build(replace(FAMILIES["dit"], has_captions=True), (2, 3), replace(OPTIONS, num_frames=5))
    (x_t, t, conditions, dropped), target = make_inputs(backbone, 30, torch.float64)
    assert x_t.shape == target.shape == (30, 5, 4, 2, 3)
    assert t.shape == (30,)
    features, mask = conditions["caption"]
    assert features.shape == (30, 77, 768)
    assert features.dtype == x_t.dtype == torch.float64
    assert len(set(mask.sum(1).tolist())) > 10
    assert 0 < dropped["caption"].sum() < 30
    assert make_inputs(build(FAMILIES["dit"], (2, 3), OPTIONS), 2)[0].conditions == {}


@pytest.fixture
def spoilt_scan(monkeypatch):
    """Calls of the CPU scan go through the function that the test gives; the reference backend stays as it is."""

    def spoil(function):
        right = scan_op._RUNS["cpu"]
        monkeypatch.setitem(scan_op._RUNS, "cpu", lambda *arguments: function(right, *arguments))

    return spoil


def test_a_scan_that_ignores_its_order_is_found(spoilt_scan):
    spoilt_scan(lambda right, *arguments: right(*arguments[:8], None, *arguments[9:]))
    zigzag, sweep = FAMILIES["zigzag8"], FAMILIES["sweep"]
    (line,) = findings({"zigzag8": zigzag, "sweep": sweep}, OPTIONS, training=False)
    assert line.startswith("ZigMa zigzag-8 is wrong in float32: relative error ")
    assert "of the output against the eager float64 reference" in line


def test_a_scan_of_nans_is_found(spoilt_scan):
    spoilt_scan(lambda right, *arguments: right(*arguments) * float("nan"))
    (line,) = findings({"sweep": FAMILIES["sweep"]}, OPTIONS, training=False)
    assert "relative error nan" in line


def test_a_scan_with_wrong_gradients_alone_is_found_in_training(spoilt_scan):
    def without_gradient_of_A(right, u, delta, A, *rest):
        return right(u, delta, A.detach(), *rest) + 0 * A.sum()

    spoilt_scan(without_gradient_of_A)
    chosen = {"zigzag8": FAMILIES["zigzag8"]}
    assert not list(findings(chosen, OPTIONS, training=False))
    (line,) = findings(chosen, OPTIONS, training=True)
    assert "of the gradients" in line


def test_nothing_is_timed_on_zeros():
    for contestant in EAGER.values():
        backbone = build(contestant, (4, 4), OPTIONS)
        assert all(parameter.any() for parameter in backbone.parameters())
        assert backbone(torch.randn(1, 4, 4, 4), torch.rand(1)).std() > 0.01


def test_weights_are_the_same_in_every_execution():
    one, other = (build(FAMILIES[name], (4, 4), OPTIONS).state_dict() for name in ("zigzag8", "zigzag8-compiled"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_transformers_have_half_the_layers():
    depths = {name: len(build(contestant, (4, 4), OPTIONS).blocks) for name, contestant in EAGER.items()}
    assert {name: depth for name, depth in depths.items() if name in ("dit", "uvit")} == {"dit": 2, "uvit": 2}
    assert {depth for name, depth in depths.items() if name not in ("dit", "uvit")} == {3}


def test_compiling_reaches_the_model_or_each_block(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options)))
    backbone = build(FAMILIES["zigzag8"], (4, 4), OPTIONS)
    assert ModelOptions(CPU, torch.float32, 1).compile_scope == "blocks"
    assert execute(backbone, "compiled", "model") is backbone
    assert compiled == [(backbone, {"fullgraph": True, "dynamic": False})]
    compiled.clear()
    execute(backbone, "compiled", "blocks")
    assert compiled == [(region, {"fullgraph": True, "dynamic": False}) for region in regions(backbone)]
    assert set(backbone.blocks) < set(regions(backbone))
    compiled.clear()
    for execution in ("graph", "compiled-graph"):
        graphed = execute(backbone, execution, "model")
        assert graphed.backbone is backbone
        assert graphed.compile_backbone == (execution == "compiled-graph")
        assert not compiled  # the backbone itself stays as it is
        trained = in_training(graphed)
        assert isinstance(trained, GraphedTraining)
        assert trained.backbone is backbone
        assert len(compiled) == (len(regions(backbone)) if execution == "compiled-graph" else 0)
    assert in_training(backbone) is backbone


def test_labels():
    assert FAMILIES["zigzag8-compiled-graph"].label == "ZigMa zigzag-8, compiled, CUDA graph"
    one = Contestant("ZigMa", "ZigMa zigzag", "graph", ScanConfig("zigzag", 1), counts_orders=True)
    assert one.label == "ZigMa zigzag, 1 order, CUDA graph"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dti", "--contestants dti does not exist: choose from zigzag8"),
        ("dit-graph", "a CUDA graph.*--device cuda"),
    ],
)
def test_contestants_that_cannot_take_part_are_named(name, message):
    with pytest.raises(UserError, match=message):
        contestants_named(FAMILIES, [name], CPU)


def test_a_tiny_model_is_called_one():
    assert OPTIONS.describe().startswith("TINY MODELS, not the paper's: width 64, depth 3")
    full = ModelOptions(CPU, torch.bfloat16, repeats=1)
    assert full.describe() == "size B, 4 channels, patch 1, unconditional, bfloat16 autocast"
