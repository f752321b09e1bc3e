"""Replayed training steps give the gradients of the backbone; CUDA graphs are emulated on the CPU."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from backbones import tiny
from backbones.replayed import assert_follows, build, draw, step
from backbones.tiny import BACKBONES

from zigma_pl.models.taps import tapped
from zigma_pl.runtime import graphed_training
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.graphed_training import GraphedTraining

pytestmark = pytest.mark.usefixtures("num_recorded")


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_every_backbone_is_replayed_right(name, kind, dtype, num_recorded):
    options, conditions = tiny.CONDITIONS[kind]
    graphed = GraphedTraining(build(name, **options))
    for seed in range(2):
        dropped = dict.fromkeys(conditions, torch.arange(3) == seed)
        assert_follows(graphed, *draw(seed), tiny.masked(conditions, seed), dropped, dtype=dtype)
    assert len(num_recorded) == 1


def tapped_step(network, backbone, tap, layers, *inputs):
    """Return the loss of prediction and tapped layers, and its gradients."""
    backbone.zero_grad()
    with tap(layers) as features:
        prediction = network(*inputs)
    assert features.keys() == set(layers)
    loss = prediction.square().mean() + sum(features[layer].sin().mean() for layer in layers)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in backbone.parameters())]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_tapped_layers_are_replayed_with_their_gradients(name, gradient_checkpointing, num_recorded):
    graphed = GraphedTraining(build(name, gradient_checkpointing=gradient_checkpointing))
    for seed, layers in enumerate([["blocks.0"], ["blocks.0"], [], ["blocks.0", "blocks.1"]]):
        replayed = tapped_step(graphed, graphed.backbone, graphed.tapped, layers, *draw(seed))
        expected = tapped_step(
            graphed.backbone, graphed.backbone, partial(tapped, graphed.backbone), layers, *draw(seed)
        )
        for a, b in zip(replayed, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert len(num_recorded) == 3


def leaves_of(output):
    """Return the leaves that a tensor was computed from."""
    found, seen, pending = [], set(), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        pending += [parent for parent, _ in node.next_functions]
    return found


def test_recorded_gradients_are_not_those_of_the_parameters_themselves(monkeypatch):
    """DDP keeps what accumulates their gradients, on another stream than the one that is recorded."""
    leaves = []
    monkeypatch.setattr(graphed_training, "record", lambda forward, _: leaves.extend(leaves_of(forward()[0])) or 1 / 0)
    graphed = GraphedTraining(build())
    with pytest.raises(ZeroDivisionError):
        graphed(*draw())
    parameters = list(graphed.backbone.parameters())
    assert len(leaves) == len(parameters)
    assert {leaf.data_ptr() for leaf in leaves} == {parameter.data_ptr() for parameter in parameters}
    assert not any(leaf is parameter for leaf in leaves for parameter in parameters)


def test_compiled_layers_are_not_compiled_again_for_the_parameters_of_a_recording(monkeypatch):
    """Without the cache of autocast they still are, which is left out here: torch.compile has a guard on it."""
    monkeypatch.setattr(graphed_training, "uncached_autocast", lambda *_: nullcontext())
    num_compiled = []
    graphed = GraphedTraining(build())
    compile_regions(graphed.backbone, backend=lambda graph, _: num_compiled.append(1) or graph)
    with torch.autocast("cpu", enabled=False):
        step(graphed.backbone, graphed.backbone, *draw())
        before = len(num_compiled)
        assert_follows(graphed, *draw())
    assert len(num_compiled) == before > 0


@pytest.mark.parametrize("shared", ["mixer", "mixer.in_proj.weight"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_shared_layers_and_parameters_are_replayed_and_stay_in_place(shared, gradient_checkpointing):
    backbone = build(gradient_checkpointing=gradient_checkpointing)
    first, second = backbone.blocks[:2]
    path, _, name = shared.rpartition(".")
    setattr(second.get_submodule(path), name, getattr(first.get_submodule(path), name))
    graphed, before = GraphedTraining(backbone), list(backbone.parameters())
    for seed in range(2):
        assert_follows(graphed, *draw(seed))
    assert all(now is parameter for now, parameter in zip(backbone.parameters(), before, strict=True))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_of_a_weight_that_is_used_twice_are_added_in_float32(gradient_checkpointing):
    backbone = build(gradient_checkpointing=gradient_checkpointing)
    first, second = (block.mixer.in_proj for block in backbone.blocks[:2])
    second.weight = first.weight
    graphed, results = GraphedTraining(backbone), []
    for network in (backbone, graphed):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            network(*draw()).float().square().mean().backward()
        results.append(first.weight.grad)
    assert torch.equal(*results)
    assert not torch.equal(results[0], results[0].bfloat16().float())


def test_parameters_that_are_trained_later_get_gradients(num_recorded):
    graphed = GraphedTraining(build())
    weight = graphed.backbone.blocks[0].mixer.in_proj.weight.requires_grad_(False)
    graphed(*draw()).square().mean().backward()
    assert weight.grad is None
    weight.requires_grad_()
    assert_follows(graphed, *draw())
    assert len(num_recorded) == 2


def test_a_layer_that_the_loss_does_not_use_has_no_effect():
    graphed = GraphedTraining(build())
    with graphed.tapped(["blocks.0"]) as features:
        found = step(graphed, graphed.backbone, *draw())
    assert features["blocks.0"].requires_grad
    graphed.backbone.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(found, step(graphed.backbone, graphed.backbone, *draw()), strict=True))


def test_optimiser_steps_are_seen(num_recorded):
    graphed = GraphedTraining(build())
    optimizer = torch.optim.AdamW(graphed.backbone.parameters(), lr=0.1, fused=True)
    for seed in range(3):
        assert_follows(graphed, *draw(seed))
        optimizer.step()
    assert len(num_recorded) == 1


def test_gradients_of_micro_batches_add_up():
    graphed = GraphedTraining(build())
    sums = []
    for network in (graphed, graphed.backbone):
        graphed.backbone.zero_grad()
        for seed in range(3):
            sums.append(step(network, graphed.backbone, *draw(seed))[1:])
    assert all(torch.equal(a, b) for a, b in zip(sums[2], sums[5], strict=True))


def test_gradients_that_autograd_took_as_they_were_add_up_too():
    graphed = GraphedTraining(build())
    expected, found = [], []
    for network, gradients in ((graphed.backbone, expected), (graphed, found)):
        graphed.backbone.zero_grad()
        for seed in range(2):
            step(network, graphed.backbone, *draw(seed))
            if network is graphed and seed == 0:  # autograd may use or copy them
                recording = graphed._recording
                for parameter, gradient in zip(recording.parameters, recording._gradients, strict=True):
                    parameter.grad = gradient.detach()
        gradients.extend(parameter.grad for parameter in graphed.backbone.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_forward_pass_in_between_is_an_error():
    graphed = GraphedTraining(build())
    prediction = graphed(*draw())
    graphed(*draw(1))
    with pytest.raises(AssertionError, match="forward pass"):
        prediction.sum().backward()


def test_the_graph_that_was_recorded_is_let_go(monkeypatch):
    backbone = build()

    def nodes():
        return [parameter.expand_as(parameter).grad_fn.next_functions[0][0] for parameter in backbone.parameters()]

    def leaving_marks(call):
        results = call()
        for node in nodes():
            node.metadata["of"] = "recording"
        return results

    monkeypatch.setattr(graphed_training, "warm_up", leaving_marks)
    monkeypatch.setattr(
        graphed_training, "record", lambda *calls: [(lambda: None, leaving_marks(call)) for call in calls]
    )
    graphed = GraphedTraining(backbone)
    graphed(*draw()).sum().backward()
    assert not any(node.metadata for node in nodes())


def test_an_earlier_prediction_is_the_callers_own():
    graphed = GraphedTraining(build())
    first = graphed(*draw())
    kept = first.detach().clone()
    graphed(*draw(1))
    assert torch.equal(first, kept)


def test_the_backbone_itself_is_called_where_a_replay_would_not_do(num_recorded):
    graphed = GraphedTraining(build())
    backbone = graphed.backbone
    with torch.no_grad():
        assert torch.equal(graphed(*draw()), backbone(*draw()))
    backbone.eval()
    assert_follows(graphed, *draw())
    backbone.train()
    assert not num_recorded
    assert_follows(graphed, *draw())
    assert_follows(graphed, *draw(batch_size=2))
    backbone.register_forward_hook(lambda *_: None)
    assert_follows(graphed, *draw())
    assert len(num_recorded) == graphed._recording.num_forward_passes == 1


def test_moved_parameters_are_recorded_anew(num_recorded):
    graphed = GraphedTraining(build())
    assert_follows(graphed, *draw())
    parameter = graphed.backbone.final_layer.projection.weight
    parameter.data = 2 * parameter.data
    assert_follows(graphed, *draw())
    assert len(num_recorded) == 2


def test_a_copy_replays_its_own_backbone(num_recorded):
    graphed = GraphedTraining(build())
    assert_follows(graphed, *draw())
    other = copy.deepcopy(graphed)
    assert other.backbone is not graphed.backbone
    assert_follows(other, *draw())
    assert len(num_recorded) == 2


def test_gradient_checkpointing_is_replayed_too():
    assert_follows(GraphedTraining(build(gradient_checkpointing=True)), *draw())


def test_a_network_that_cannot_be_recorded_runs_step_by_step_unless_recording_is_required(monkeypatch, caplog):
    def fail(*calls):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed_training, "record", fail)
    optional = GraphedTraining(build(), required=False)
    for seed in range(2):
        assert_follows(optional, *draw(seed))
    assert len(caplog.records) == 1
    with pytest.raises(RuntimeError, match="capturing"):
        GraphedTraining(build())(*draw())


def test_a_forgotten_recording_is_made_again(num_recorded):
    graphed = GraphedTraining(build())
    for _ in range(2):
        assert_follows(graphed, *draw())
        graphed.forget()
    assert len(num_recorded) == 2
