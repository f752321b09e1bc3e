import pytest
import torch

from zigma_pl.nn import mixer as mixer_module
from zigma_pl.nn.block import ZigzagBlock
from zigma_pl.nn.factorized import FactorizedMixer
from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.scan.schedule import ScanConfig

F, L = 3, 6
AXES = ["space", "time"]
NUM_STEPS = {"space": L, "time": F}
# Tokens 0 to F L - 1 of a clip as the sequences that a layer has to scan, by hand.
SEQUENCES = {
    "space": [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]],
    "time": [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 16], [5, 11, 17]],
}


def build(axis):
    torch.manual_seed(0)
    return FactorizedMixer(16, axis=axis, num_frames=F).double()


def draw(batch_size=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, F * L, 16, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("axis", AXES)
def test_each_sequence_is_mixed_as_by_a_plain_mixer(axis):
    mixer, tokens, order = build(axis), draw(), torch.randperm(NUM_STEPS[axis]).int()
    plain = MambaMixer(16).double()
    plain.load_state_dict(mixer.state_dict())  # the same names, too
    mixed = mixer(tokens, order)
    for sequence in SEQUENCES[axis]:
        torch.testing.assert_close(mixed[:, sequence], plain(tokens[:, sequence], order))


@pytest.mark.parametrize("axis", AXES)
def test_order_and_its_inverse_compose_to_the_identity(axis, monkeypatch):
    """A scan of no effect: arrange the rows along the order, take down what is visited, put them back."""
    visited = []

    def arrange(mixer, sequences, visit_order):
        visited.append(sequences[:, visit_order.long(), 0])
        undo = torch.empty_like(visit_order.long())
        undo[visit_order.long()] = torch.arange(len(undo))
        return sequences[:, visit_order.long()][:, undo]

    monkeypatch.setattr(MambaMixer, "forward", arrange)
    tokens = torch.arange(2 * F * L).reshape(2, F * L, 1)
    orders, indices = ScanConfig(video="factorized", plan=(axis,)).layer_orders(8, 2, 3, num_frames=F)
    for index in indices:
        order = torch.as_tensor(orders[index])
        assert torch.equal(build(axis)(tokens, order), tokens)
        expected = torch.tensor(SEQUENCES[axis])[:, order.long()]
        assert torch.equal(visited.pop(), torch.cat([expected, expected + F * L]))


@pytest.mark.parametrize("axis", AXES)
def test_gradients_stay_within_the_sequence_and_follow_its_order(axis):
    mixer, order = build(axis), torch.randperm(NUM_STEPS[axis]).int()
    for sequence in SEQUENCES[axis]:
        for step in (0, len(order) - 1):
            tokens = draw(batch_size=1).requires_grad_()
            mixer(tokens, order)[0, sequence[order[step]]].sum().backward()
            reached = set(tokens.grad[0].any(-1).nonzero().flatten().tolist())
            assert reached == {sequence[place] for place in order[: step + 1]}


@pytest.mark.parametrize("axis", AXES)
def test_block_modulates_each_clip_by_its_own_conditioning(axis):
    """Also where norm, modulation and mixer are one call, every sequence has to get the conditioning of its clip."""
    block = ZigzagBlock(16, build(axis)).double()
    for parameter in block.modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    block.norm.weight.data.uniform_()
    x, order = draw(), torch.randperm(NUM_STEPS[axis]).int()
    conditioning, branch, gate = torch.randn(2, 16).double(), draw() ** 2, torch.randn(2, 1, 16).double()
    added, (mixed, _) = block(x, (branch, gate), conditioning, order)
    torch.testing.assert_close(added, x + gate * branch)
    shift, scale, _ = block.modulation(conditioning)[:, None].chunk(3, dim=-1)
    torch.testing.assert_close(mixed, block.mixer(block.norm(added) * (1 + scale) + shift, order))


@pytest.mark.parametrize("axis", AXES)
def test_scans_get_sequences_and_not_clips(axis, monkeypatch):
    seen = []
    original = mixer_module.selective_scan
    monkeypatch.setattr(mixer_module, "selective_scan", lambda u, *a, **k: seen.append(u.shape) or original(u, *a, **k))
    build(axis)(draw(), torch.arange(NUM_STEPS[axis]).int())
    assert seen == [(2 * F * L // NUM_STEPS[axis], NUM_STEPS[axis], 32)]
