import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from zigma_pl.cli.commands import orders
from zigma_pl.core.errors import UserError
from zigma_pl.scan import MixedOrders, ScanConfig, prediction, visit_order


def rows_of(text):
    """Columns of the table by label."""
    return {" ".join(line.split()[:1]): line.split()[1:] for line in text.splitlines()[2:-1]}


def test_compares_every_scheme_with_every_number_of_orders(in_tmp, capsys):
    assert orders.main(["sweep", "zigzag", "--num_orders", "1", "8", "--out", "new/orders.png"]) == 0
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert list(rows) == ["sweep-1", "sweep-8", "zigzag-1", "zigzag-8"]
    assert rows["sweep-8"][:3] == ["0.684", "0.887", "3.88"]
    assert rows["zigzag-8"][1] == "0.443"
    assert text.splitlines()[-1] == "new/orders.png"
    with Image.open("new/orders.png") as picture:
        assert picture.format == "PNG"


def test_without_schemes_all_that_exist_for_the_grid_are_compared(in_tmp, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(orders, "save", lambda *_: None)  # the chart of the other grid is saved
        assert orders.main(["--height", "9", "--width", "9"]) == 0
    assert "peano-8" in capsys.readouterr().out
    assert orders.main(["--height", "8", "--width", "8"]) == 0
    text = capsys.readouterr().out
    assert "peano" not in text
    assert "moore-8" in text


def test_files_and_classes_have_the_numbers_of_the_same_named_scheme(in_tmp, capsys):
    np.save("mine.npy", np.stack([visit_order("zigzag", 6, 6, index=index) for index in range(8)]))
    (in_tmp / "own_orders.py").write_text(
        "from zigma_pl.scan import Scheme, visit_order\n\n\n"
        "class Mine(Scheme):\n"
        "    def order(self, index, height, width, num_frames=None):\n"
        "        return visit_order('zigzag', height, width, index=index)\n"
    )
    sys.path.insert(0, str(in_tmp))
    try:
        argv = ["zigzag", "mine.npy", "own_orders.Mine", "--height", "6", "--width", "6"]
        assert orders.main([*argv, "--allow_import", "own_orders"]) == 0
    finally:
        sys.path.remove(str(in_tmp))
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 3
    assert rows["zigzag-8"] == rows["mine.npy-8"] == rows["own_orders.Mine-8"]


def test_indices_and_reverses_are_used(in_tmp, capsys):
    assert orders.main(["sweep", "--indices", "0", "1", "6", "7"]) == 0
    opposite = capsys.readouterr().out.splitlines()[2]
    assert orders.main(["sweep", "--indices", "0", "1", "--both_ways"]) == 0
    both_ways = capsys.readouterr().out.splitlines()[2]
    assert both_ways.partition("ways ")[2].split() == opposite.partition("] ")[2].split()


@pytest.mark.parametrize(
    "argv",
    [
        ["sweeep"],
        ["peano"],
        ["missing.npy"],
        ["own_elsewhere.Scheme"],
        ["zigma_pl.scan.ScanConfig"],
        ["--num_orders", "9"],
        ["--out", "orders.bmpp"],
        ["--width", "500"],
        ["--depth", "0"],
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(argv, in_tmp):
    with pytest.raises(UserError):
        orders.main(argv)
    assert not list(in_tmp.iterdir())


def test_import_is_light():
    code = "import sys, zigma_pl.cli.commands.orders; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predicts_the_loss_of_an_experiment_and_writes_the_numbers(in_tmp, capsys, repository):
    experiment = str(repository / "experiments" / "table1x_sweep4_opposite.yaml")
    argv = ["random", experiment, "--height", "8", "--width", "8", "--depth", "4", "--predict", "--json", "new/n.json"]
    assert orders.main(argv) == 0
    rows = rows_of(capsys.readouterr().out)
    numbers = json.loads((in_tmp / "new" / "n.json").read_text())
    assert list(numbers["orders"]) == ["random-8", "table1x_sweep4_opposite"]
    random, opposite = numbers["orders"].values()
    assert opposite["predicted"] < random["predicted"]
    assert opposite["directions"] == pytest.approx(3.5)
    assert rows["random-8"][-1] == f"{random['predicted']:.4f}"
    assert (numbers["height"], numbers["depth"], numbers["patch_size"]) == (8, 4, 2)


def test_reference_model_sets_the_decay_rates(in_tmp, repository):
    small = ["sweep", "--height", "4", "--width", "4", "--depth", "2", "--predict", "--json", "n.json"]
    assert orders.main([*small, "--reference", str(repository / "models" / "portraits")]) == 0
    given = json.loads((in_tmp / "n.json").read_text())
    assert orders.main(small) == 0
    usual = json.loads((in_tmp / "n.json").read_text())
    assert given["rates"] == pytest.approx(usual["rates"], rel=1e-3)
    with pytest.raises(UserError):
        orders.main([*small, "--reference", "nowhere"])


def test_compares_predictions_with_records(in_tmp, capsys, repository, monkeypatch):
    monkeypatch.setattr(prediction, "MIN_TOKENS", 1)  # 4 fields instead of 16
    monkeypatch.setattr(prediction, "MIN_FIELDS", 4)
    records = [
        str(repository / "results" / "pilot" / f"table1_{name}.json") for name in ("sweep", "zigzag8", "zigzag2")
    ]
    assert orders.main(["--records", *records, "--out", "agreement.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["table1_zigzag8", "table1_zigzag2", "table1_sweep"]
    assert lines[4].startswith("predicted loss: ")
    assert "100.0 % of 3 pairs" in lines[4]
    assert (in_tmp / "agreement.png").is_file()
    with pytest.raises(UserError):
        orders.main(["--records", records[0]])


def test_config_without_a_scan_is_refused(in_tmp):
    (in_tmp / "mine.yaml").write_text("model: {}\n")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        orders.main(["mine.yaml"])


def test_search_prints_better_and_better_sets(in_tmp, capsys):
    argv = ["--search", "3", "--num_trials", "40", "--height", "4", "--width", "4", "--depth", "3", "--patch_size", "1"]
    assert orders.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[0]) for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) > 1
    parts = yaml.safe_load(lines[-1].partition("parts: ")[2])
    found = MixedOrders([ScanConfig(part["scheme"], indices=part["indices"]) for part in parts])
    assert found.num_orders == 3
    assert not list(in_tmp.iterdir())
    with pytest.raises(UserError):
        orders.main(["--search", "0"])
