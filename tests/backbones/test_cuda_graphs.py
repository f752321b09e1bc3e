"""Recording of CUDA graphs: no garbage collection in between."""

import gc
import weakref

import pytest
import torch

from zigma_pl.runtime.cuda_graphs import garbage_collection_paused, record


class Cycle:
    """Refers to itself, so that only the garbage collector frees it and its members."""

    def __init__(self, held=None):
        self.held, self.itself = held, self


def provoke_collection():
    """Create enough containers to trigger garbage collection, if it is enabled."""
    return [[] for _ in range(200_000)]


class TestGarbageKept:
    def test_collects_before_and_not_meanwhile(self):
        before = weakref.ref(Cycle())
        with garbage_collection_paused():
            assert before() is None
            meanwhile = weakref.ref(Cycle())
            provoke_collection()
            assert meanwhile() is not None
        gc.collect()
        assert meanwhile() is None

    @pytest.mark.parametrize("was_enabled", [True, False])
    def test_leaves_the_collector_as_it_was(self, was_enabled):
        try:
            (gc.enable if was_enabled else gc.disable)()
            with pytest.raises(ZeroDivisionError), garbage_collection_paused():
                raise ZeroDivisionError
            assert gc.isenabled() == was_enabled
        finally:
            gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_that_dies_does_not_end_a_recording():
    x = torch.ones(3, device="cuda")

    def recorded():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x + 1
        return graph

    dead = [recorded(), recorded()]
    Cycle(dead.pop())  # before

    def call():
        Cycle(dead.pop())  # and meanwhile
        provoke_collection()
        return (x * 2,)

    ((replay, (doubled,)),) = record(call)
    replay()
    assert doubled.tolist() == [2, 2, 2]
