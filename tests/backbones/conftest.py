"""CUDA graphs of training steps, emulated on the CPU."""

import pytest
import torch

from zigma_pl.runtime import graphed_training
from zigma_pl.runtime.graphed_training import GraphedTraining


@pytest.fixture
def num_recorded(monkeypatch):
    """Recordings played on the CPU by calling again, with results in fixed memory; returns how many there are.

    A replay may write to the memory of those after it, and here it does: what is left there is not a number.
    """
    recorded = []

    def record(*calls):
        recordings = []
        for number, call in enumerate(calls):
            results = tuple(result.detach().clone() for result in call())

            def replay(call=call, results=results, number=number):
                for _, later in recordings[number + 1 :]:
                    for static in later:
                        static.fill_(torch.nan)
                with torch.enable_grad():
                    found = call()
                for static, result in zip(results, found, strict=True):
                    static.copy_(result.detach())

            recordings.append((replay, results))
        recorded.append(recordings)
        return recordings

    monkeypatch.setattr(graphed_training, "warm_up", lambda call: call())
    monkeypatch.setattr(graphed_training, "record", record)
    monkeypatch.setattr(GraphedTraining, "device_type", "cpu")
    return recorded
