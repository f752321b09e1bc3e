import pytest
import torch

from zigma_pl.core.randomness import rand_per_sample, randn_per_sample, sample_generators


def draw(seed, stream, ids, shape=(2, 3)):
    return randn_per_sample(sample_generators(seed, stream, ids), shape)


def test_rows_belong_to_their_ids():
    together = draw(0, "sample", [3, 1, 2])
    assert together.shape == (3, 2, 3)
    assert torch.equal(together[1:2], draw(0, "sample", torch.tensor([1])))
    assert torch.equal(together.flip(0), draw(0, "sample", [2, 1, 3]))


@pytest.mark.parametrize("shape", [(), (3,), (17,), (3, 5, 7), (3, 16, 16)])
def test_rows_are_what_each_generator_gives_alone(shape):
    """One after the other, whatever was drawn before: vectorised and not, aligned and not."""
    together, alone = (sample_generators(0, "train", range(4)) for _ in range(2))
    for _ in range(2):
        assert torch.equal(rand_per_sample(together), torch.cat([torch.rand(1, generator=one) for one in alone]))
        expected = torch.stack([torch.randn(shape, generator=one) for one in alone])
        assert torch.equal(randn_per_sample(together, shape), expected)


def test_seed_stream_and_id_each_matter():
    rows = [draw(*arguments) for arguments in ((0, "a", [0]), (1, "a", [0]), (0, "b", [0]), (0, "a", [1]))]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 4


def test_draws_of_many_ids_are_standard_normal_and_uniform():
    normal = draw(0, "x", range(2000), (1,)).flatten()
    assert abs(normal.mean()) < 0.1
    assert abs(normal.std() - 1) < 0.05
    uniform = rand_per_sample(sample_generators(0, "x", range(2000)))
    assert uniform.shape == (2000,)
    assert abs(uniform.mean() - 0.5) < 0.03
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


def test_draws_are_pinned():
    """Changing these changes every sample of every seed: they are part of what a seed means."""
    expected = torch.randn(2, generator=torch.Generator().manual_seed(1170510158946665638))
    found = draw(0, "sample", [0], (2,))[0]
    assert torch.equal(found, expected)
