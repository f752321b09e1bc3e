from itertools import islice

import pytest

from zigma_pl.core.batch import FILLER_ID
from zigma_pl.core.errors import UserError
from zigma_pl.data.order import EvaluationOrder, TrainingOrder


def stream(num_steps, *, num_images=10, batch_size=4, **kwargs):
    order = TrainingOrder(num_images, batch_size, seed=kwargs.pop("seed", 0), **kwargs)
    return list(islice(order, num_steps))


def flat(batches):
    return [pair for batch in batches for pair in batch]


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (3, 8), (1, 5), (7, 7)])
def test_every_epoch_visits_every_image_once(num_images, batch_size):
    num_epochs = 6
    pairs = flat(stream(60, num_images=num_images, batch_size=batch_size))[: num_epochs * num_images]
    assert [position for position, _ in pairs] == list(range(num_epochs * num_images))
    for epoch in range(num_epochs):
        indices = [index for _, index in pairs[epoch * num_images : (epoch + 1) * num_images]]
        assert sorted(indices) == list(range(num_images))


def test_epochs_and_seeds_differ():
    indices = [index for _, index in flat(stream(10, num_images=20))]
    assert indices[:20] != indices[20:]
    assert indices[:20] != list(range(20))
    assert indices != [index for _, index in flat(stream(10, num_images=20, seed=1))]


def test_resumed_stream_continues_exactly():
    assert stream(6, steps_done=lambda: 5) == stream(11)[5:]


def test_new_iteration_asks_where_training_is():
    steps_done = 0
    order = TrainingOrder(10, 4, seed=0, steps_done=lambda: steps_done)
    first = list(islice(order, 3))
    steps_done = 2  # a worker may have fetched ahead: only what training has had counts
    assert next(iter(order)) == first[2]


def test_two_ranks_see_what_one_rank_of_twice_the_batch_sees():
    ranks = [stream(7, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    together = [first + second for first, second in zip(*ranks, strict=True)]
    assert together == stream(7, batch_size=6)


def test_training_never_ends_and_an_empty_split_is_refused():
    with pytest.raises(TypeError):
        len(TrainingOrder(10, 4, seed=0))
    with pytest.raises(UserError, match="no images"):
        TrainingOrder(0, 4, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_everything_once_over_all_ranks(world_size):
    orders = [EvaluationOrder(11, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    pairs = [pair for order in orders for pair in flat(order) if pair[0] != FILLER_ID]
    assert sorted(pairs) == [(index, index) for index in range(11)]
    assert all(len(list(order)) == len(order) for order in orders)
    assert [index for index, _ in flat(orders[0])] == list(range(0, 11, world_size))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 8, 9])
def test_all_ranks_have_as_many_batches(num_samples):
    ranks = [list(EvaluationOrder(num_samples, 2, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == -(-num_samples // 4)
    fillers = [batch for batch in ranks[1] if batch[0][0] == FILLER_ID]
    assert fillers == ([[(FILLER_ID, 0)]] if num_samples % 4 == 1 else [])


def test_of_no_samples_there_is_no_batch():
    assert list(EvaluationOrder(0, 2, rank=1, world_size=2)) == []
