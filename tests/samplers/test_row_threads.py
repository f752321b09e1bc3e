"""On a CPU without gradients, threads compute parts of the batch, in the modes of the calling thread."""

import threading

import pytest
import torch
from backbones.tiny import BACKBONES

from zigma_pl.core.batch import Condition
from zigma_pl.runtime import row_threads
from zigma_pl.runtime.graphed_sampling import GraphedBackbone


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def build(name="ZigMa", **options):
    torch.manual_seed(0)
    backbone = BACKBONES[name](2, 4, 4, width=16, depth=2, num_classes=3, caption_dim=5, **options).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def draw(batch_size):
    conditions = {
        "class": Condition(torch.randint(3, (batch_size,))),
        "caption": Condition(torch.randn(batch_size, 3, 5), torch.rand(batch_size, 3) > 0.3),
    }
    dropped = {"caption": torch.arange(batch_size) % 2 > 0}
    return torch.randn(batch_size, 2, 4, 4), torch.rand(batch_size), conditions, dropped


def calls_of(backbone):
    """Return a list to which each forward pass adds its thread, rows, threads of PyTorch and modes."""
    calls = []

    def note(_, arguments):
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        calls.append((threading.get_ident(), len(arguments[0]), torch.get_num_threads(), *modes))

    backbone.register_forward_pre_hook(note)
    return calls


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("batch_size", "parts"), [(2, [2]), (5, [2, 3]), (16, [4, 4, 4, 4])])
def test_parts_of_the_batch_give_the_output_of_the_whole(name, batch_size, parts):
    backbone, inputs = build(name), draw(batch_size)
    with torch.no_grad():
        expected = backbone(*inputs)
        calls = calls_of(backbone)
        output = GraphedBackbone(backbone)(*inputs)
    torch.testing.assert_close(output, expected)
    assert (len({call[0] for call in calls}) > 1) == (len(parts) > 1)
    assert sorted(call[1] for call in calls) == parts
    assert {call[2] for call in calls} == {4 // len(parts)}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True])
def test_threads_have_the_modes_of_the_caller(mode, autocast):
    backbone = build()
    calls = calls_of(backbone)
    with mode(), torch.autocast("cpu", torch.bfloat16, autocast):
        output = GraphedBackbone(backbone)(*draw(8))
    assert not output.requires_grad
    assert output.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert {call[3:] for call in calls} == {(False, mode is torch.inference_mode, autocast)}


def test_one_call_with_gradients_compiled_or_sharded_parameters(monkeypatch):
    backbone = build()
    calls = calls_of(backbone)
    assert GraphedBackbone(backbone)(*draw(8)).requires_grad
    with torch.no_grad():
        GraphedBackbone(backbone, compile_backbone=True)(*draw(8))
        monkeypatch.setattr(row_threads, "is_sharded", lambda _: True)
        GraphedBackbone(backbone)(*draw(8))
    assert [call[1:3] for call in calls] == [(8, 4)] * 3


def test_an_error_in_a_thread_is_raised():
    backbone = build()

    def fail_elsewhere(*_):
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("in a thread")

    backbone.register_forward_pre_hook(fail_elsewhere)
    with pytest.raises(KeyError, match="in a thread"), torch.no_grad():
        GraphedBackbone(backbone)(*draw(8))
