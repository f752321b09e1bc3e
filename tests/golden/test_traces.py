"""Every experiment trains as it did when its trace was stored, whatever has been renamed or moved since."""

import json

import pytest
from golden.golden_traces import EXPERIMENTS, TRACES, build, make_parser, read_weights, train

STORED = json.loads(TRACES.read_text())


@pytest.fixture(scope="module")
def parser():
    return make_parser()


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_an_experiment_reproduces_its_trace(experiment, parser):
    stored = STORED[experiment.name]  # of a new experiment: python tests/golden/golden_traces.py
    module, data = build(experiment, parser)
    module.backbone.load_state_dict(read_weights(stored["weights"]))
    trace = train(module, data)
    for name in ("loss", "gradient_norm"):  # bit-equal on the machine that wrote them
        assert trace[name] == pytest.approx(stored[name], rel=1e-6, abs=1e-6), name


def test_no_trace_is_of_a_deleted_experiment():
    assert STORED.keys() == {experiment.name for experiment in EXPERIMENTS}
