"""Kind: nonsense values of numeric options; here of commands, which refuse them before they start."""

import pytest

from zigma_pl.cli.main import main

OPTIONS = {
    "paths": ["height", "width", "seed"],
    "orders": ["height", "width", "depth", "num_orders", "indices", "seed"],
    "ablations": ["jobs", "seeds"],
    "demo": ["num_samples", "max_steps"],
    "sample": ["num_samples", "batch_size", "seed"],
    "show-batch": ["num_samples"],
    "import-zigma": ["img_dim"],
}
REQUIRED = {
    "sample": ["--model", "nowhere"],
    "show-batch": ["--config", "experiments/digits.yaml"],
    "import-zigma": ["nowhere.pt", "--out", "nowhere"],
}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in OPTIONS.items() for option in options]
)
@pytest.mark.parametrize("value", ["-1", str(10**12)])
def test_numbers_out_of_range_are_refused_in_one_line(command, option, value, in_tmp, capsys):
    try:
        status = main([command, *REQUIRED.get(command, []), f"--{option}={value}"])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert option in errors[0]
    assert not list(in_tmp.iterdir())
