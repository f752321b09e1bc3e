"""The overlays of configs/strategy, and what the command line makes of them."""

import pytest
import yaml
from lightning.pytorch.strategies import DDPStrategy

from zigma_pl.cli.main import main
from zigma_pl.strategies import FullySharded

STRATEGIES = {"ddp": DDPStrategy, "fsdp": FullySharded}


@pytest.mark.parametrize("name", STRATEGIES)
def test_overlay_gives_its_strategy(name, repository, in_tmp, capsys):
    configs = [repository / "experiments" / "digits.yaml", repository / "configs" / "strategy" / f"{name}.yaml"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *(f"--config={path}" for path in configs), "--print_config"])
    assert not ended.value.code
    strategy = yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]
    made = STRATEGIES[name](**strategy.get("init_args", {}))
    assert strategy["class_path"].endswith(type(made).__name__)


def test_every_overlay_is_tested(repository):
    assert {path.stem for path in (repository / "configs" / "strategy").glob("*.yaml")} == STRATEGIES.keys()
