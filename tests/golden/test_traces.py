"""Every experiment trains as it did when its trace was stored, whatever has been renamed or moved since."""

import json

import pytest
from golden.golden_traces import EXPERIMENTS, TRACES, build, make_parser, options_of, read_weights, train

STORED = json.loads(TRACES.read_text())


@pytest.fixture(scope="module")
def trace():
    """Return a function that trains with the given options and weights, once for experiments that share both."""
    parser, known = make_parser(), {}

    def trace(options, weights):
        key = json.dumps([options, weights], sort_keys=True)
        if key not in known:
            module, data = build(options, parser)
            module.backbone.load_state_dict(read_weights(weights))
            known[key] = train(module, data)
        return known[key]

    return trace


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_an_experiment_reproduces_its_trace(experiment, trace):
    stored = STORED[experiment.name]  # of a new experiment: python tests/golden/golden_traces.py
    found = trace(options_of(experiment), stored["weights"])
    for name in ("loss", "gradient_norm"):  # bit-equal on the machine that wrote them
        assert found[name] == pytest.approx(stored[name], rel=1e-6, abs=1e-6), name


def test_no_trace_is_of_a_deleted_experiment():
    assert STORED.keys() == {experiment.name for experiment in EXPERIMENTS}
