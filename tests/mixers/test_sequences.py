import pytest
import torch

from zigma_pl.mixers import Branch, Mamba, Mamba2, Mixer, SelfAttention, Visit
from zigma_pl.models.block import BlockConditions, ZigzagBlock
from zigma_pl.models.mixers.sequences import Sequences
from zigma_pl.ops.rows import inverse_order, take_rows

F, L = 3, 6
AXES = ["space", "time"]
NUM_STEPS = {"space": L, "time": F}
# Tokens 0 to F L - 1 of a clip as the sequences that a layer scans, written by hand.
SEQUENCES = {
    "space": [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]],
    "time": [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 16], [5, 11, 17]],
}


class Arranged(Mixer):
    """Takes its rows in visit order and returns their positions."""

    takes_rows_in_visit_order = True

    def forward(self, tokens, visit):
        assert visit.order is None
        return tokens + torch.arange(tokens.shape[1])[:, None]


def build(options=None):
    torch.manual_seed(0)
    return (options or Mamba()).build(16).double()


def draw(batch_size=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, F * L, 16, dtype=torch.float64, generator=generator)


def random_visit(axis):
    order = torch.randperm(NUM_STEPS[axis], generator=torch.Generator().manual_seed(2)).int()
    return Visit(torch.zeros(len(order), 2), order, inverse_order(order).int())


@pytest.mark.parametrize(
    "options", [Mamba(), Mamba2(head_dim=8), SelfAttention()], ids=["mamba", "mamba2", "attention"]
)
@pytest.mark.parametrize("axis", AXES)
def test_each_sequence_is_mixed_by_itself(axis, options):
    mixer, tokens, visit = build(options), draw(), random_visit(axis)
    mixed = Sequences(axis, F).mix(mixer, tokens, visit)
    for sequence in SEQUENCES[axis]:
        torch.testing.assert_close(mixed[:, sequence], mixer(tokens[:, sequence], visit))


@pytest.mark.parametrize("axis", AXES)
def test_gradients_stay_within_the_sequence_and_follow_its_order(axis):
    mixer, visit = build(), random_visit(axis)
    for sequence in SEQUENCES[axis]:
        for step in (0, len(visit.order) - 1):
            tokens = draw(batch_size=1).requires_grad_()
            Sequences(axis, F).mix(mixer, tokens, visit)[0, sequence[visit.order[step]]].sum().backward()
            reached = set(tokens.grad[0].any(-1).nonzero().flatten().tolist())
            assert reached == {sequence[place] for place in visit.order[: step + 1]}


@pytest.mark.parametrize("mixer", [build(), Arranged()], ids=["raster rows", "rows in visit order"])
@pytest.mark.parametrize("branch_is_arranged", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_block_modulates_each_clip_by_its_own_conditioning(axis, branch_is_arranged, mixer):
    """With norm, modulation and mixer in one call, every sequence must get the conditioning of its clip."""
    block = ZigzagBlock(16, mixer, sequences=Sequences(axis, F)).double()
    for parameter in block.modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    block.norm.weight.data.uniform_()
    x, visit = draw(), random_visit(axis)
    conditioning, rows, gate = torch.randn(2, 16).double(), draw() ** 2, torch.randn(2, 1, 16).double()
    inverse = torch.randperm(F * L).int() if branch_is_arranged else None
    added, branch = block(x, Branch(rows, gate, inverse), BlockConditions(conditioning), visit)
    torch.testing.assert_close(added, x + gate * (take_rows(rows, inverse) if branch_is_arranged else rows))
    shift, scale, _ = block.modulation(conditioning)[:, None].chunk(3, dim=-1)
    expected = block.sequences.mix(mixer, block.norm(added) * (1 + scale) + shift, visit)
    torch.testing.assert_close(branch.raster_rows(), expected)


@pytest.mark.parametrize("axis", AXES)
def test_scans_get_sequences_and_not_clips(axis, monkeypatch):
    from zigma_pl.models.mixers import mamba

    seen = []
    original = mamba.selective_scan
    monkeypatch.setattr(mamba, "selective_scan", lambda u, *a, **k: seen.append(u.shape) or original(u, *a, **k))
    Sequences(axis, F).mix(build(), draw(), random_visit(axis))
    assert seen == [(2 * F * L // NUM_STEPS[axis], NUM_STEPS[axis], 32)]


class Transposed(Mixer):
    """Returns rows whose channels are not adjacent in memory, as a convolution over the tokens does."""

    def forward(self, tokens, visit):
        return tokens.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("axis", AXES)
def test_mixers_may_return_rows_in_any_memory_format(axis):
    block = ZigzagBlock(16, Transposed(), sequences=Sequences(axis, F)).double()
    _, mixed = block(draw(), None, BlockConditions(torch.zeros(2, 16, dtype=torch.float64)), random_visit(axis))
    torch.testing.assert_close(mixed.raster_rows(), block.norm(draw()))
