import copy
from functools import partial

import torch
from torch import nn

from zigma_pl.optimizers import ByRole, parameter_groups


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Embedding(3, 2), nn.Linear(6, 4))


def set_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def optimiser_of(module):
    muon = partial(torch.optim.Muon, lr=0.1, weight_decay=0.0)
    return ByRole(parameter_groups([module]), matrix=muon, other=partial(torch.optim.AdamW, lr=0.01))


def test_each_role_gets_its_own_optimiser():
    module, expected = network(), network()
    optimiser = optimiser_of(module)
    matrices = [expected[0].weight, expected[2].weight]
    others = [expected[0].bias, expected[1].weight, expected[2].bias]
    muon = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.0)
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.0)
    for step in range(3):
        set_gradients(module, step)
        set_gradients(expected, step)
        for each in (optimiser, muon, adamw):
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


def test_resumed_training_is_bit_equal():
    whole, resumed = network(), network()
    first = optimiser_of(whole)
    for step in range(4):
        set_gradients(whole, step)
        first.step()
        if step == 1:
            resumed.load_state_dict(whole.state_dict())
            saved = copy.deepcopy(first.state_dict())
    second = optimiser_of(resumed)
    second.load_state_dict(saved)
    for step in (2, 3):
        set_gradients(resumed, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_learning_rate_schedules_reach_both():
    module = network()
    optimiser = optimiser_of(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5)
    before = [parameter.clone() for parameter in module.parameters()]
    set_gradients(module, 0)
    optimiser.step()
    schedule.step()
    rates = {group["role"]: group["lr"] for part in optimiser.parts for group in part.param_groups}
    assert rates == {"matrix": 0.05, "vector": 0.005, "embedding": 0.005}
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
