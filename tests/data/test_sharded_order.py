from bisect import bisect_right
from itertools import accumulate, islice, pairwise

import pytest

from zigma_pl.data.sharded_order import ShardedEvaluationOrder, ShardedTrainingOrder
from zigma_pl.errors import UserError

SIZES = (5, 3, 0, 7, 4)
NUM_SAMPLES = sum(SIZES)


def stream(num_steps, *, sizes=SIZES, batch_size=4, seed=0, **kwargs):
    return list(islice(ShardedTrainingOrder(sizes, batch_size, seed=seed, **kwargs), num_steps))


def flat(batches):
    return [pair for batch in batches for pair in batch]


def shard_of(index, sizes=SIZES):
    return bisect_right(list(accumulate(sizes)), index)


@pytest.mark.parametrize("sizes", [SIZES, (1,), (2, 2, 2), (11,), (0, 1)])
def test_every_epoch_visits_every_sample_once(sizes):
    total, num_epochs = sum(sizes), 6
    pairs = flat(stream(num_epochs * total, sizes=sizes, batch_size=1))
    assert [position for position, _ in pairs] == list(range(num_epochs * total))
    for epoch in range(num_epochs):
        assert sorted(index for _, index in pairs[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_one_shard_is_finished_before_the_next_begins():
    for epoch in range(4):
        pairs = flat(stream((epoch + 1) * NUM_SAMPLES, batch_size=1))[epoch * NUM_SAMPLES :]
        shards = [shard_of(index) for _, index in pairs]
        changes = sum(here != there for here, there in pairwise(shards))
        assert changes == 3  # four shards hold anything


def test_shards_and_samples_are_shuffled_anew_each_epoch_and_with_each_seed():
    orders = []
    for seed in range(2):
        indices = [index for _, index in flat(stream(8 * NUM_SAMPLES, batch_size=1, seed=seed))]
        orders += [tuple(indices[start : start + NUM_SAMPLES]) for start in range(0, len(indices), NUM_SAMPLES)]
    assert len(set(orders)) == 16
    assert len({tuple(dict.fromkeys(shard_of(index) for index in order)) for order in orders}) > 8
    assert len({tuple(index for index in order if shard_of(index) == 3) for order in orders}) > 14


@pytest.mark.parametrize("world_size", [2, 3, 8, 25])
def test_ranks_share_each_epoch_of_the_one_stream(world_size):
    num_epochs = 30
    alone = dict(flat(stream((num_epochs + 2) * NUM_SAMPLES, batch_size=1)))
    steps = num_epochs * NUM_SAMPLES // world_size + 1
    ranks = [flat(stream(steps, batch_size=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [pair for rank in ranks for pair in rank]
    assert len(dict(together)) == len(together)  # disjoint
    assert all(alone[position] == index for position, index in together)
    assert set(range(num_epochs * NUM_SAMPLES)) <= set(dict(together))  # the union is the one rank's stream
    for rank in ranks:  # in one piece of each epoch, from front to back
        positions = [position for position, _ in rank]
        assert positions == sorted(positions)
        jumps = sum(there != here + 1 for here, there in pairwise(positions))
        assert jumps <= num_epochs + 1


def test_ranks_never_drift_apart():
    world_size = 4  # 19 samples: three ranks have one more than the fourth, each epoch other ones
    orders = [ShardedTrainingOrder(SIZES, 1, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    for turn in range(1000, 1100):
        epochs = {order.position(turn) // NUM_SAMPLES for order in orders}
        assert max(epochs) - min(epochs) <= 1
    assert {order.position(19 * 1000) // NUM_SAMPLES for order in orders} == {4000}


def test_a_rank_opens_few_shards():
    sizes, world_size = [100] * 40, 8
    for rank in range(world_size):
        pairs = flat(stream(50, sizes=sizes, batch_size=10, rank=rank, world_size=world_size))
        assert len({shard_of(index, sizes) for _, index in pairs}) == 5


def test_resumed_stream_continues_exactly():
    for world_size in (1, 3):
        order = {"rank": world_size - 1, "world_size": world_size}
        assert stream(6, steps_done=lambda: 7, **order) == stream(13, **order)[7:]


def test_batches_may_be_larger_than_the_set():
    assert [len(batch) for batch in stream(5, batch_size=50)] == [50] * 5
    assert flat(stream(5, batch_size=50)) == flat(stream(250, batch_size=1))


def test_training_never_ends_and_an_empty_split_is_refused():
    with pytest.raises(TypeError):
        len(ShardedTrainingOrder(SIZES, 4, seed=0))
    with pytest.raises(UserError, match="no images"):
        ShardedTrainingOrder([0, 0], 4, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])
def test_evaluation_sees_everything_once_over_all_ranks(world_size):
    orders = [ShardedEvaluationOrder(NUM_SAMPLES, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    pairs = [pair for order in orders for pair in flat(order)]
    assert pairs == [(index, index) for index in range(NUM_SAMPLES)]
    assert all(len(list(order)) == len(order) for order in orders)
    sizes = [len(flat(order)) for order in orders]
    assert max(sizes) - min(sizes) <= 1
