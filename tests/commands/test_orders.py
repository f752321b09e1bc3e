import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from zigma_pl.cli.commands import orders
from zigma_pl.core.class_paths import build_described
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
    assert [line.split()[0] for line in lines[2:5]] == ["table1_zigzag8", "table1_zigzag2", "table1_sweep"]
    assert fractions(lines)["predicted loss", "all"] == ("100.0", "3")
    assert (in_tmp / "agreement.png").is_file()
    with pytest.raises(UserError):
        orders.main(["--records", records[0]])


def fractions(lines):
    """The fraction of pairs and their number, by the number that ranks and the kind of pairs."""
    found, ranks = {}, ""
    for line in lines:
        if ": correlation" in line:
            ranks = line.partition(":")[0]
        if "ranked correctly" in line:
            kind, _, rest = line.strip().partition(": ")
            found[ranks, kind] = (rest.split()[0], rest.split()[3])
    return found


def made_up_record(source, file, name, loss, scan):
    record = json.loads(source.read_text())
    record["row"] = name
    record["scores"]["validation_loss"]["value"] = loss
    record["protocol"]["backbone"]["scan"] |= scan
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record))
    return str(file)


def test_held_out_experiments_are_judged_apart_and_each_folder_by_itself(in_tmp, capsys, repository):
    """Made-up losses: the predictions rank all pairs but one of the two held-out experiments."""
    source = repository / "results" / "pilot" / "table1_sweep.json"
    losses = {
        "table1_zigzag8": (0.1000, {"scheme": "zigzag", "num_orders": 8}),  # predicted 0.922
        "table1_zigzag8_seed1": (0.1010, {"scheme": "zigzag", "num_orders": 8}),
        "table1_sweep": (0.1300, {"scheme": "sweep", "num_orders": 1}),  # predicted 1.012
        "table1x_spiral8": (0.1200, {"scheme": "spiral", "num_orders": 8}),  # predicted 0.996
        "table1x_moore8": (0.1250, {"scheme": "moore", "num_orders": 8}),  # predicted 0.955
        "table1x_z_order8": (0.1252, {"scheme": "z_order", "num_orders": 8}),  # predicted 0.936, within the seeds
    }
    files = [made_up_record(source, in_tmp / "one" / f"{name}.json", name, *values) for name, values in losses.items()]
    other = [
        made_up_record(source, in_tmp / "two" / f"{name}.json", name, 0.5 - values[0], values[1])
        for name, values in losses.items()
        if name.startswith("table1_")
    ]
    other.append(made_up_record(source, in_tmp / "two" / "t.json", "table1_zigzag1", 0.2, {"scheme": "zigzag"}))
    predictions = repository / "experiments" / "orders" / "predictions_1024.json"
    argv = ["--records", *files, *other, "--predictions", str(predictions), "--out", "agreement.png"]
    assert orders.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    second = lines.index("two:")
    found = fractions(lines[:second])
    # Of ten pairs, moore and z-order are within the error of seeds; spiral is predicted worse than both.
    assert found["predicted loss", "all"] == (f"{700 / 9:.1f}", "9")
    assert found["predicted loss", "both held out"] == ("0.0", "2")
    assert found["predicted loss", "one held out"] == ("100.0", "6")
    assert found["predicted loss", "none held out"] == ("100.0", "1")
    # z-order has 2.0 directions, spiral 2.1, moore 2.9, sweep 1, zigzag 3.9.
    assert found["directions", "both held out"] == ("50.0", "2")
    assert found["directions", "one held out"] == ("100.0", "6")
    assert sum(line.endswith("held out") for line in lines[:second]) == 3
    assert fractions(lines[second:])["predicted loss", "all"] == ("0.0", "3")
    with Image.open("agreement.png") as picture:
        assert picture.width > 1.9 * picture.height  # two panels


def test_predictions_of_another_size_are_refused(in_tmp, repository):
    pilot = repository / "results" / "pilot"
    records = [str(pilot / f"table1_{name}.json") for name in ("sweep", "zigzag8", "zigzag2")]
    shipped = repository / "experiments" / "orders"
    of_clips = in_tmp / "of_clips.json"
    of_clips.write_text(json.dumps(json.loads((shipped / "predictions_1024.json").read_text()) | {"frames": 4}))
    for file in (shipped / "predictions_4096.json", of_clips, pilot / "table1_sweep.json"):
        with pytest.raises(UserError, match=file.name):
            orders.main(["--records", *records, "--predictions", str(file)])
    (in_tmp / "held_out.json").write_text("{}")
    with pytest.raises(UserError, match=r"held_out\.json"):
        orders.main(["--records", *records, "--held_out", "held_out.json"])


def test_experiments_have_their_own_mixers_and_scales_set_their_size(in_tmp, repository):
    experiments = repository / "experiments"
    names = ["table7_mamba2_sweep", "table7_hybrid_quarter_sweep", "table7_attention"]
    files = [str(experiments / f"{name}.yaml") for name in names]
    small = ["--height", "8", "--width", "8", "--depth", "4", "--predict", "--json", "n.json"]
    assert orders.main([*files, "--scale", "pilot", *small]) == 0
    found = json.loads((in_tmp / "n.json").read_text())["orders"]
    sweep, hybrid, attention = (found[name] for name in names)
    assert hybrid["predicted"] < sweep["predicted"]
    assert (hybrid["directions"], attention["directions"]) == (sweep["directions"], 0)
    assert orders.main(["sweep", "--num_orders", "1", "--attention_every", "4", *small]) == 0
    own = json.loads((in_tmp / "n.json").read_text())["orders"]["sweep-1"]
    assert own["predicted"] == pytest.approx(hybrid["predicted"], abs=0.01)  # the rates of Mamba-1 and Mamba-2 differ
    assert own["predicted"] != hybrid["predicted"]
    with pytest.raises(UserError, match="nowhere"):
        orders.main([*files, "--scale", "nowhere"])
    with pytest.raises(UserError, match="table6_dit"):
        orders.main([str(experiments / "table6_dit.yaml")])


def test_clips_are_compared_like_images(in_tmp, capsys, repository):
    small = ["--height", "4", "--width", "4", "--frames", "4", "--depth", "6", "--predict", "--json", "n.json"]
    experiments = [str(repository / "experiments" / f"table4_{name}.yaml") for name in ("zigzag3d", "sst")]
    assert orders.main(["zigzag", *experiments, *small]) == 0
    numbers = json.loads((in_tmp / "n.json").read_text())
    assert (numbers["frames"], numbers["speed"]) == (4, 1.0)
    found = numbers["orders"]
    assert found["zigzag-8"] == found["table4_zigzag3d"]
    assert orders.main(["zigzag", "--plan", "space", "space", "time", *small]) == 0
    factorized = json.loads((in_tmp / "n.json").read_text())["orders"]["zigzag-8 sst"]
    assert factorized == found["table4_sst"]
    assert factorized["predicted"] != found["zigzag-8"]["predicted"]
    assert orders.main(["zigzag", "--speed", "0", *small]) == 0
    assert (
        json.loads((in_tmp / "n.json").read_text())["orders"]["zigzag-8"]["predicted"] < found["zigzag-8"]["predicted"]
    )
    for wrong in (["--plan", "space"], ["--frames", "0"], ["--speed", "-1"], ["--attention_every", "0"]):
        with pytest.raises(UserError):
            orders.main(["zigzag", *wrong])


def test_search_of_clips_prints_schemes_for_mixed_orders(in_tmp, capsys):
    argv = ["--search", "2", "--num_trials", "25", "--height", "4", "--width", "4", "--frames", "3", "--depth", "3"]
    assert orders.main([*argv, "--patch_size", "1", "--speed", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("TimeFirst" in line for line in lines)
    for line in lines:
        parts = yaml.safe_load(line.partition("parts: ")[2])
        mixed = {"class_path": "zigma_pl.scan.MixedOrders", "init_args": {"parts": parts}}
        assert len(build_described({"scheme": mixed}, ScanConfig).orders(4, 4, 3)) == 2


def test_config_without_a_scan_is_refused(in_tmp):
    (in_tmp / "mine.yaml").write_text("model: {}\n")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        orders.main(["mine.yaml"])
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        orders.main(["absent.yaml"])


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
