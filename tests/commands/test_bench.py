"""The benchmark command: its options, what it prints and writes, and that wrong numbers are never timed."""

import json
import sys

import pytest
import torch

from zigma_pl.benchmarks import forward, scan, scan_contestants, scan_kinds
from zigma_pl.benchmarks.model_table import Setting
from zigma_pl.cli.commands import bench
from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.selective_scan import reference

SCAN = ["scan", "--shapes", "2,8,4,3", "1,5,2,1", "--repeats", "1", "--bandwidth", "10", "--device", "cpu"]
TINY = ["--width", "16", "--depth", "2", "--grids", "2", "--batches", "2", "--repeats", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """The times do not matter here."""
    monkeypatch.setattr("zigma_pl.benchmarks.timing.MIN_SAMPLE_SECONDS", 1e-6)


@pytest.fixture
def without_mambapy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy.pscan", None)  # importing it raises ImportError


def cumulative_pscan(decay, increment):
    """A replacement with the signature of mambapy's pscan."""
    h, states = torch.zeros_like(increment[:, 0]), []
    for a, x in zip(decay.unbind(1), increment.unbind(1), strict=True):
        h = a * h + x
        states.append(h)
    return torch.stack(states, 1)


@pytest.fixture
def mambapy(monkeypatch):
    """The figures come from the real package; the command is tested without needing it."""
    module = type(sys)("mambapy.pscan")
    module.pscan = cumulative_pscan
    monkeypatch.setitem(sys.modules, "mambapy", type(sys)("mambapy"))
    monkeypatch.setitem(sys.modules, "mambapy.pscan", module)


@pytest.mark.usefixtures("mambapy")
def test_scan_prints_a_table_and_writes_figures_and_picture(capsys, tmp_path):
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench.main([*SCAN, "--json", str(figures), "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, threads {torch.get_num_threads()}" in lines[0]
    rows = [line for line in lines if line.startswith("(")]
    assert [row.split(")")[1].split()[0] for row in rows] == ["cpu", "mambapy", "ssd-cpu"] * 2
    record = json.loads(figures.read_text())
    assert record["complete"] is True
    assert record["machine"]["torch"] == torch.__version__
    ours, peer = record["records"][:2]
    assert ours["shape"] == [2, 8, 4, 3]
    assert ours["ratio_to"] == "mambapy"
    assert ours["ratio"] == pytest.approx(ours["both"]["seconds"]["median"] / peer["both"]["seconds"]["median"])
    assert peer["ratio"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("without_mambapy")
def test_without_mambapy_there_is_no_ratio_and_a_hint(capsys):
    assert bench.main(SCAN) == 0
    out = capsys.readouterr().out
    assert "pip install mambapy" in out
    assert all(line.split(")")[1].split()[4] == "-" for line in out.splitlines() if line.startswith("("))


@pytest.mark.usefixtures("mambapy")
def test_the_yardstick_does_the_same_work():
    cpu = torch.device("cpu")
    arguments = scan_kinds.make_arguments((2, 9, 4, 3), torch.float32, cpu, fused=False)
    errors = relative_errors(scan_contestants.make_contestant("mambapy", cpu), reference.run, arguments)
    assert set(errors) == {"output", "u", "delta", "A", "B", "C", "skip"}
    assert max(errors.values()) < 1e-5


def test_wrong_numbers_are_reported_and_nothing_else(monkeypatch, capsys, tmp_path):
    def wrong(name, device):
        return scan.ScanContestant(name, lambda arguments, order: reference.run(**arguments, visit_order=order) * 1.01)

    monkeypatch.setattr(scan_contestants, "make_contestant", wrong)
    files = ["--json", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert bench.main([*SCAN, "--contestants", "cpu", *files]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line[:29] for line in captured.err.splitlines()] == ["bench scan: cpu is wrong with"] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("subject", "contestants", "num_rows"),
    [("forward", ["sweep", "dit"], 2), ("train", ["zigzag8", "uvit"], 2), ("order", ["parallel"], 8)],
)
def test_models_are_checked_and_timed(subject, contestants, num_rows, capsys, tmp_path):
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    files = ["--json", str(figures), "--plot", str(picture), "--commit", "abc1234"]
    assert bench.main([subject, *TINY, "--contestants", *contestants, *files]) == 0
    out = capsys.readouterr().out
    assert "commit abc1234" in out.splitlines()[0]
    assert "TINY MODELS, not the paper's: width 16, depth 2" in out
    content = json.loads(figures.read_text())
    assert len(content["records"]) == num_rows
    assert {(r["grid"], r["batch_size"], r["seconds"]["num_samples"]) for r in content["records"]} == {(2, 2, 1)}
    assert picture.exists()


def test_an_interrupted_run_keeps_what_it_has_timed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(forward, "findings", lambda *arguments, **options: ())
    prepare = forward.prepare

    def interrupted_at_grid_3(options, backbone, network, setting):
        if setting.grid == 3:
            raise KeyboardInterrupt
        return prepare(options, backbone, network, setting)

    monkeypatch.setattr(forward, "prepare", interrupted_at_grid_3)
    figures = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        bench.main(["forward", *TINY, "--grids", "2", "3", "--contestants", "dit", "--json", str(figures)])
    assert capsys.readouterr().out.splitlines()[-1].startswith("(interrupted")
    content = json.loads(figures.read_text())
    assert (len(content["records"]), content["complete"]) == (1, False)


def settings_of(*argv):
    options = bench._parse([*argv])
    return bench._settings(options, [Setting(8, 1), Setting(16, 1)])


def test_grids_and_batches_combine_and_training_pairs_them():
    assert settings_of("forward") == [Setting(8, 1), Setting(16, 1)]
    assert settings_of("forward", "--batches", "1", "4", "--grids", "2") == [Setting(2, 1), Setting(2, 4)]
    assert settings_of("order", "--batches", "4") == [Setting(8, 4), Setting(16, 4)]
    assert settings_of("train", "--batches", "4", "2") == [Setting(8, 4), Setting(16, 2)]
    with pytest.raises(UserError, match="--grids has 1 entries, --batches 2"):
        settings_of("train", "--grids", "8", "--batches", "1", "2")


@pytest.mark.parametrize(
    ("argv", "device", "size"),
    [
        ([], "cpu", (None, 64, 6)),
        (["--depth", "2"], "cpu", (None, 64, 2)),
        (["--size", "S"], "cpu", ("S", None, None)),
        ([], "cuda", ("B", None, None)),
        (["--depth", "2"], "cuda", ("B", None, 2)),
        (["--depth", "2", "--width", "64"], "cuda", (None, 64, 2)),
    ],
)
def test_sizes_are_tiny_on_a_cpu_and_the_papers_on_a_gpu(argv, device, size):
    assert bench._model_size(bench._parse(["forward", *argv]), torch.device(device)) == size


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["scna"],
        ["scan", "--shapes", "1,2,3"],
        ["scan", "--shapes", "1,2,3,x"],
        ["forward", "--repeats", "0"],
        ["forward", "--plot", "picture.bmp"],
        ["forward", "--size", "M"],
    ],
)
def test_misspelt_options_end_with_one_message(argv, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(argv)
    assert error.value.code == 2
    assert "python -m zigma_pl bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["scan", "--contestants", "mamba_ssm", "--device", "cpu"], BackendUnavailable, "mamba_ssm"),
        (["scan", "--contestants", "cqu", "--device", "cpu"], UserError, "cqu does not exist"),
        (["forward", "--contestants", "dti", "--device", "cpu"], UserError, "dti does not exist"),
        (["forward", "--contestants", "dit-graph", "--device", "cpu"], UserError, "use --device cuda"),
        (["train", "--json", "no/such/folder/bench.json"], UserError, "no/such/folder does not exist"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_timed(argv, error, message, in_tmp):
    with pytest.raises(error, match=message):
        bench.main(argv)
