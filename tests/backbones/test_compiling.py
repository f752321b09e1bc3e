"""Regional compilation: which modules are compiled, and that results do not change."""

import pytest
import torch
from backbones import tiny
from torch._dynamo.testing import CompileCounter

from zigma_pl.backbones import DiT, UViT, ZigMa
from zigma_pl.runtime.compiling import MAX_COMPILED_FORMS, compile_regions, regions


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
def test_every_parameter_lies_in_one_region(backbone_class):
    backbone = tiny.build(backbone_class, num_classes=4)
    own = [child for child in backbone.children() if type(child).__name__ in ("Linear", "LayerNorm", "Conv2d")]
    parameters = [parameter for part in (*regions(backbone), *own) for parameter in part.parameters()]
    assert set(map(id, parameters)) == set(map(id, backbone.parameters()))
    assert len(parameters) == len(set(map(id, parameters)))
    assert set(backbone.blocks) < set(regions(backbone))


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
def test_output_and_gradients_stay(backbone_class):
    torch.compiler.reset()
    plain, compiled = (tiny.build(backbone_class, num_classes=4) for _ in range(2))
    compile_regions(compiled, backend="eager", fullgraph=True)
    results = []
    for backbone in (plain, compiled):
        output = backbone(*tiny.draw(), {"class": tiny.CLASSES})
        results.append([output, *torch.autograd.grad(output.square().sum(), list(backbone.parameters()))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_there_is_room_for_the_forms_of_all_blocks():
    compile_regions(torch.nn.Sequential())
    assert torch._dynamo.config.recompile_limit >= MAX_COMPILED_FORMS


def test_blocks_of_one_kind_share_their_compiled_code():
    torch.compiler.reset()
    num_forms = {}
    for depth in (3, 4):
        forms = CompileCounter()
        backbone = tiny.build(ZigMa, depth=depth)
        compile_regions(backbone, backend=forms)
        with torch.no_grad():
            backbone(*tiny.draw())
        num_forms[depth] = forms.frame_count
    assert num_forms[3] == num_forms[4] > 0
