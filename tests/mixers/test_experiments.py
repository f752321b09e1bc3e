"""Any experiment of the tables trains with any mixer, by one option."""

import pytest
from golden.golden_traces import EXPERIMENTS, batch, build, make_parser

ATTENTION = {"class_path": "zigma_pl.mixers.SelfAttention"}
MAMBA = {"class_path": "zigma_pl.mixers.Mamba", "init_args": {"state_size": 4}}
PLANS = {"attention": ATTENTION, "hybrid": [MAMBA, MAMBA, MAMBA, ATTENTION]}
MAMBA2 = {"class_path": "zigma_pl.mixers.Mamba2", "init_args": {"state_size": 4, "head_dim": 8}}
PARALLEL = {"class_path": "zigma_pl.mixers.ParallelDirections", "init_args": {"direction": MAMBA2}}
MORE_PLANS = {"mamba2": MAMBA2, "parallel": PARALLEL, "linear": {"class_path": "zigma_pl.mixers.LinearAttention"}}
OF_TABLES = [experiment for experiment in EXPERIMENTS if experiment.prefix not in ("table1x", "table7")]  # other orders
SCANS = [experiment for experiment in EXPERIMENTS if experiment.name.startswith(("table1_zigzag8", "table3", "table4"))]


@pytest.fixture(scope="module")
def parser():
    return make_parser()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("experiment", OF_TABLES, ids=lambda experiment: experiment.name)
def test_any_mixer_trains_in_any_experiment(experiment, plan, parser):
    module, data = build(experiment, parser, mixers=PLANS[plan])
    module.training_loss(batch(0, data)).backward()
    assert all(parameter.grad is not None for parameter in module.backbone.parameters())


@pytest.mark.parametrize("plan", MORE_PLANS)
@pytest.mark.parametrize("experiment", SCANS, ids=lambda experiment: experiment.name)
def test_the_other_mixers_train_on_images_and_clips(experiment, plan, parser):
    """Clips scanned as a whole, in 3-D and factorized; layers with one order and with two."""
    module, data = build(experiment, parser, mixers=MORE_PLANS[plan])
    module.training_loss(batch(0, data)).backward()
    assert all(parameter.grad is not None for parameter in module.backbone.parameters())
