"""Any experiment of the tables trains with any mixer, by one option."""

import pytest
from golden.golden_traces import EXPERIMENTS, batch, build, make_parser

ATTENTION = {"class_path": "zigma_pl.mixers.SelfAttention"}
MAMBA = {"class_path": "zigma_pl.mixers.Mamba", "init_args": {"state_size": 4}}
PLANS = {"attention": ATTENTION, "hybrid": [MAMBA, MAMBA, MAMBA, ATTENTION]}


@pytest.fixture(scope="module")
def parser():
    return make_parser()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_any_mixer_trains_in_any_experiment(experiment, plan, parser):
    module, data = build(experiment, parser, mixers=PLANS[plan])
    module.training_loss(batch(0, data)).backward()
    assert all(parameter.grad is not None for parameter in module.backbone.parameters())
