"""The benchmark command: its table, its options, and that wrong numbers are never timed."""

import json
import sys

import pytest
import torch

from zigma_pl.commands import bench
from zigma_pl.errors import BackendUnavailable
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.selective_scan import reference

SMALL = ["scan", "--shapes", "2,8,4,3", "1,5,2,1", "--repeats", "1"]


@pytest.fixture
def without_mambapy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy.pscan", None)  # importing it raises ImportError


def cumulative_pscan(decay, increment):
    """A stand-in with the calling convention of mambapy's pscan."""
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
def test_table_and_json(capsys, tmp_path):
    path = tmp_path / "bench.json"
    assert bench.main([*SMALL, "--backends", "cpu", "reference", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, threads {torch.get_num_threads()}, cpu " in lines[0]
    rows = [line for line in lines if line.startswith("(")]
    assert [row.split(")")[1].split()[0] for row in rows] == ["cpu", "reference", "mambapy"] * 2
    assert rows[2].endswith("1.000")
    record = json.loads(path.read_text())
    assert record["torch"] == torch.__version__
    timing = record["timings"][0]
    peer = record["timings"][2]
    assert timing["shape"] == [2, 8, 4, 3]
    assert timing["ratio_to_mambapy"] == pytest.approx(timing["forward_backward_ms"] / peer["forward_backward_ms"])


@pytest.mark.usefixtures("without_mambapy")
def test_without_mambapy_the_column_says_so(capsys):
    assert bench.main(SMALL) == 0
    out = capsys.readouterr().out
    assert "pip install mambapy" in out
    assert [line.endswith("not installed") for line in out.splitlines() if line.startswith("(")] == [True, True]


@pytest.mark.usefixtures("mambapy")
def test_the_yardstick_does_the_same_work():
    arguments, _ = bench._arguments((2, 9, 4, 3))
    errors = relative_errors(bench._mambapy_scan(), reference.run, arguments)
    assert set(errors) == {"output", "u", "delta", "A", "B", "C", "skip"}
    assert max(errors.values()) < 1e-5


@pytest.mark.usefixtures("without_mambapy")
def test_wrong_numbers_are_reported_and_not_timed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "_our_scan", lambda name: lambda **given: reference.run(**given) * 1.01)
    assert bench.main([*SMALL, "--json", str(tmp_path / "bench.json")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cpu is wrong with N = 1" in captured.err
    assert "timing" not in captured.err
    assert not list(tmp_path.iterdir())


def test_contestants_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    medians = bench._interleaved_medians_ms(runs, 3)
    assert "".join(calls) == "abababab"
    assert set(medians) == {"a", "b"}


@pytest.mark.parametrize("argv", [[], ["scna"], ["scan", "--shapes", "1,2,3"], ["scan", "--shapes", "1,2,3,x"]])
def test_misspelt_options_end_with_one_message(argv, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(argv)
    assert error.value.code == 2
    assert "python -m zigma_pl bench" in capsys.readouterr().err


def test_a_backend_that_cannot_run_is_named():
    with pytest.raises(BackendUnavailable, match="mamba_ssm"):
        bench.main(["scan", "--backends", "mamba_ssm"])
