"""Which tokens of a clip influence which others, for all backbones; and agreement of clips and their frames."""

import pytest
import torch
from backbones import tiny
from backbones.tiny import reached

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.optimizers import parameter_roles
from zigma_pl.scan import clip_order, visit_order
from zigma_pl.scan.schedule import ScanConfig

F, L = 3, 6  # frames of 2 x 3 tokens
EVERYTHING = set(range(F * L))


def build(backbone_class=ZigMa, **options):
    return tiny.build(backbone_class, **({"latent_frames": F, "position_embedding": "none"} | options))


def factorized(*plan, **options):
    return build(depth=len(plan), scan=ScanConfig(video="factorized", plan=plan), **options)


def of_frame(frame):
    return set(range(frame * L, (frame + 1) * L))


def of_place(place):
    return set(range(place, F * L, L))


@pytest.mark.parametrize("index", [0, 1, 6])
def test_a_3d_layer_reaches_what_its_path_visits_later(index):
    order = clip_order("zigzag", F, 2, 3, index=index).tolist()
    backbone = build(depth=1, scan=ScanConfig(indices=(index,)))
    for token in (0, 5, 8, 17):
        assert reached(backbone, token) == set(order[order.index(token) :])


def test_eight_3d_layers_reach_everything():
    assert reached(build(depth=8), 8) == EVERYTHING


@pytest.mark.parametrize("captions", [False, True])
def test_spatial_layers_never_mix_frames(captions):
    options = {"caption_dim": 5} if captions else {}
    conditions = {"caption": Condition(torch.randn(1, 7, 5))} if captions else {}
    backbone = factorized(*["space"] * 8, **options)
    for token in (0, 8, 17):
        assert reached(backbone, token, conditions) == of_frame(token // L)
    order = visit_order("zigzag", 2, 3).tolist()
    for place in (0, 4):
        expected = {L + later for later in order[order.index(place) :]}
        assert reached(factorized("space", **options), L + place, conditions) == expected


@pytest.mark.parametrize("captions", [False, True])
def test_temporal_layers_never_mix_positions(captions):
    options = {"caption_dim": 5} if captions else {}
    conditions = {"caption": Condition(torch.randn(1, 7, 5))} if captions else {}
    for token in (0, 8, 17):
        assert reached(factorized("time", "time", **options), token, conditions) == of_place(token % L)
    assert reached(factorized("time", **options), L + 2, conditions) == {L + 2, 2 * L + 2}


def test_space_and_time_together_reach_everything():
    backbone = build(depth=9, scan=ScanConfig(video="factorized"))
    assert [block.sequences.axis for block in backbone.blocks] == ["space", "space", "time"] * 3
    assert reached(backbone, L + 4) == EVERYTHING


@pytest.mark.parametrize("backbone_class", [VisionMamba, ParallelMamba, DiT, UViT])
def test_one_layer_of_the_baselines_reaches_the_whole_clip(backbone_class):
    own = {UViT: {"final_convolution": False}, ParallelMamba: {"scan": ScanConfig(num_orders=8)}}
    backbone = build(backbone_class, depth=1, **own.get(backbone_class, {}))
    assert all(reached(backbone, token) == EVERYTHING for token in (0, 8, 17))


def test_vision_mamba_goes_through_the_clip_and_back():
    assert build(VisionMamba).visit(2).order.tolist() == [[*range(F * L)], [*reversed(range(F * L))]]


def test_final_convolution_stays_within_the_frame():
    backbone, (x, t) = build(UViT), tiny.draw(latent_frames=F)
    torch.nn.init.zeros_(backbone.final_convolution.weight)
    with torch.no_grad():
        backbone.final_convolution.weight[:, :, 1, 2] = torch.eye(2)
        backbone.final_convolution.bias.zero_()
        plain = super(UViT, backbone).forward(x, t)
        torch.testing.assert_close(backbone(x, t)[..., :-1], plain[..., 1:])


def test_without_temporal_layers_a_clip_is_its_frames():
    clips, pictures = factorized("space", "space"), tiny.build(ZigMa, depth=2, position_embedding="none")
    pictures.load_state_dict(clips.state_dict())
    x, t = tiny.draw(latent_frames=F)
    frames = torch.stack([pictures(x[:, frame], t) for frame in range(F)], dim=1)
    torch.testing.assert_close(clips(x, t), frames)


def test_one_frame_is_an_image():
    for options in ({}, {"scan": ScanConfig(video="factorized", plan=("space",))}):
        clips, pictures = (tiny.build(ZigMa, latent_frames=frames, **options) for frames in (1, None))
        torch.nn.init.zeros_(clips.frame_position_embedding.table)
        pictures.load_state_dict(
            {name: value for name, value in clips.state_dict().items() if "frame_position" not in name}
        )
        x, t = tiny.draw()
        torch.testing.assert_close(clips(x[:, None], t)[:, 0], pictures(x, t))


@pytest.mark.parametrize("kind", ["none", "cosine", "learnable"])
@pytest.mark.parametrize("backbone_class", [ZigMa, VisionMamba, DiT])
def test_frames_have_position_embeddings(backbone_class, kind):
    """Embedded, the same image in every frame is equal in all frames except for the position embeddings."""
    backbone = build(backbone_class, position_embedding=kind)
    tokens = backbone.embed_tokens(torch.ones(1, F, 2, 4, 6)).unflatten(1, (F, L))[0]
    if kind == "none":
        torch.testing.assert_close(tokens, tokens[:1, :1].expand_as(tokens))
        return
    space, time = (table.table[0] for table in (backbone.position_embedding, backbone.frame_position_embedding))
    torch.testing.assert_close(tokens - tokens[:1, :1], (space - space[0]) + (time - time[0])[:, None])
    assert len(time.unique(dim=0)) == F
    learns = isinstance(backbone.frame_position_embedding.table, torch.nn.Parameter)
    assert learns == (kind == "learnable")
    assert ("frame_position_embedding.table" in backbone.state_dict()) == learns


def test_frame_positions_are_not_decayed():
    backbone = build(position_embedding="learnable")
    assert parameter_roles(backbone)["frame_position_embedding.table"] == "embedding"


def test_parallel_directions_of_a_factorized_scan_go_along_space_and_time():
    assert build(ParallelMamba, scan=ScanConfig(num_orders=2)).visit(0).order.shape == (2, F * L)
    backbone = build(ParallelMamba, depth=3, scan=ScanConfig(num_orders=2, video="factorized"))
    assert [backbone.visit(layer).order.shape for layer in range(3)] == [(2, L), (2, L), (2, F)]
    space = build(ParallelMamba, depth=1, scan=ScanConfig(num_orders=2, video="factorized"))
    assert reached(space, L + 2) <= of_frame(1)


@pytest.mark.parametrize("residual", ["prenorm", "legacy"])
def test_factorized_gradients_agree_with_differences_in_float64(residual):
    backbone = factorized("space", "time", residual=residual, num_classes=4).double()
    x, t = (value.double() for value in tiny.draw(2, latent_frames=F))
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(x):
        return backbone(x, t, {"class": Condition(torch.tensor([0, 3]))}).square().sum()

    (gradient,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    with torch.no_grad():
        difference = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=0)
