"""Any experiment of the tables trains with any mixer, by one option."""

import json

import pytest
from golden.golden_traces import EXPERIMENTS, batch, build, make_parser, options_of

ATTENTION = {"class_path": "zigma_pl.mixers.SelfAttention"}
MAMBA = {"class_path": "zigma_pl.mixers.Mamba", "init_args": {"state_size": 4}}
PLANS = {"attention": ATTENTION, "hybrid": [MAMBA, MAMBA, MAMBA, ATTENTION]}
MAMBA2 = {"class_path": "zigma_pl.mixers.Mamba2", "init_args": {"state_size": 4, "head_dim": 8}}
PARALLEL = {"class_path": "zigma_pl.mixers.ParallelDirections", "init_args": {"direction": MAMBA2}}
MORE_PLANS = {"mamba2": MAMBA2, "parallel": PARALLEL, "linear": {"class_path": "zigma_pl.mixers.LinearAttention"}}


def kind_of(experiment):
    """Return what a mixer meets: the class of the backbone, the conditions, and how clips are scanned.

    golden/test_traces.py trains with all visit orders, objectives and position embeddings.
    """
    options = options_of(experiment)
    backbone, data = options["model"]["backbone"], options["data"]
    video = backbone["init_args"].get("scan", {}).get("video")
    return json.dumps([backbone["class_path"], data["class_path"], data.get("init_args", {}).get("condition"), video])


ONE_OF_EACH_KIND = list({kind_of(experiment): experiment for experiment in reversed(EXPERIMENTS)}.values())[::-1]
SCANS = [e for e in ONE_OF_EACH_KIND if e.name.startswith(("table3", "table4"))]


@pytest.fixture(scope="module")
def parser():
    return make_parser()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("experiment", ONE_OF_EACH_KIND, ids=lambda experiment: experiment.name)
def test_any_mixer_trains_in_any_experiment(experiment, plan, parser):
    module, data = build(options_of(experiment, mixers=PLANS[plan]), parser)
    module.training_loss(batch(0, data)).backward()
    assert all(parameter.grad is not None for parameter in module.backbone.parameters())


@pytest.mark.parametrize("plan", MORE_PLANS)
@pytest.mark.parametrize("experiment", SCANS, ids=lambda experiment: experiment.name)
def test_the_other_mixers_train_on_images_and_clips(experiment, plan, parser):
    """Clips scanned as a whole, in 3-D and factorized; layers with one order and with two."""
    module, data = build(options_of(experiment, mixers=MORE_PLANS[plan]), parser)
    module.training_loss(batch(0, data)).backward()
    assert all(parameter.grad is not None for parameter in module.backbone.parameters())
