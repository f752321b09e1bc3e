"""bench efficiency and bench flops: the five backbones at one size, counted and timed, and what does not fit."""

import json

import pytest
import torch
from backbones import tiny

from zigma_pl.benchmarks import efficiency, flops, model_table
from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.model_table import Setting, dit_among, match_parameters
from zigma_pl.benchmarks.models import FAMILIES, ModelOptions, outline
from zigma_pl.cli.commands import bench
from zigma_pl.models.flops import count_flops

OPTIONS = ModelOptions(torch.device("cpu"), torch.float32, repeats=2, size=None, width=16, depth=4)
MACHINE = {"date": "2026-01-01", "device": "a device"}
FIVE = ["zigzag8", "vision_mamba", "parallel8", "dit", "uvit"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The times do not matter here, and the checks have tests of their own."""
    monkeypatch.setattr("zigma_pl.benchmarks.timing.MIN_SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(efficiency, "findings", lambda *arguments, **options: ())


def run(subject, names, settings, options=OPTIONS):
    return subject.run(
        options, {name: subject.CONTESTANTS[name] for name in names}, settings, MACHINE, lambda result: None
    )


def test_each_of_the_five_has_a_row_with_counts_and_both_speeds(tmp_path):
    result = run(efficiency, FIVE, [Setting(2, 3)])
    assert [row[:3] for row in result.rows] == [("2", "3", FAMILIES[name].label) for name in FIVE]
    zigzag, *_, dit, _ = result.records
    assert zigzag["flops"]["ratios"]["total"] == zigzag["flops"]["total"] / dit["flops"]["total"]
    for which in ("train", "forward"):
        assert zigzag[which]["per_second"] == pytest.approx(3 / zigzag[which]["seconds"]["median"])
        assert zigzag[which]["ratio"]["median"] > 0
        assert dit[which]["ratio"]["median"] == 1
    assert all(len(row) == len(result.columns) for row in result.rows)
    result.write_plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_said_and_still_counted(monkeypatch, tmp_path):
    build = model_table.build

    def limited(contestant, grid, options):
        if contestant.architecture == "ParallelMamba":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(contestant, grid, options)

    monkeypatch.setattr(model_table, "build", limited)
    result = run(efficiency, ["parallel8", "dit"], [Setting(2, 1)])
    assert [row.count("out of memory") for row in result.rows] == [2, 0]
    assert result.records[0]["flops"]["total"] > 0
    assert (result.records[0]["train"]["per_second"], result.records[0]["train"]["ratio"]) == (None, None)
    result.write_plot(tmp_path / "picture.png")


def test_wrong_numbers_end_it_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(efficiency, "findings", lambda *arguments, **options: ["U-ViT is wrong"])
    monkeypatch.setattr(model_table, "measure", None)  # calling it would be an error
    with pytest.raises(WrongNumbersError, match="bench efficiency: U-ViT is wrong; nothing was timed"):
        run(efficiency, ["uvit"], [Setting(2, 1)])


def test_without_a_dit_there_is_nothing_to_compare_with():
    (row,) = run(efficiency, ["zigzag8"], [Setting(2, 1)]).rows
    assert [row[i] for i, column in enumerate(efficiency.COLUMNS) if column == "to DiT"] == ["-"] * 3
    assert [dit_among(names) for names in ({"dit", "dit-compiled"}, {"dit"}, {"uvit"})] == ["dit-compiled", "dit", None]


@pytest.mark.parametrize("name", FIVE)
def test_parameters_are_matched_at_any_size(name):
    options = ModelOptions(torch.device("cpu"), torch.float32, 1, None, 64, 12)
    with tiny.without_values():
        goal, own = (
            outline(FAMILIES[which], (8, 8), match_parameters(FAMILIES[which], options)).num_parameters()
            for which in ("zigzag8", name)
        )
    assert own == pytest.approx(goal, rel=0.07)  # half a layer
    assert name != "zigzag8" or own == goal


def test_presets_are_matched_already():
    options = ModelOptions(torch.device("cpu"), torch.float32, 1)
    assert all(match_parameters(FAMILIES[name], options) is options for name in FIVE)


def test_operations_of_the_papers_size_are_counted_by_kind(tmp_path):
    """The ratios that docs/performance.md gives."""
    options = ModelOptions(torch.device("cpu"), torch.float32, 1)
    with tiny.without_values():
        result = run(flops, FIVE, [Setting(8, 1), Setting(32, 1)], options)
    to_dit = [round(record["ratios"]["total"], 3) for record in result.records]
    assert [to_dit[0], to_dit[4]] == [0.986, 1.476]
    assert to_dit[5:] == [0.827, 0.854, 1.014, 1.0, 1.457]
    zigzag = result.records[5]
    with tiny.without_values():
        counted = count_flops(outline(FAMILIES["zigzag8"], (32, 32), options))
    assert (zigzag["flops"]["total"], zigzag["flops"]["scan"]) == (counted.total, counted.scan)
    assert zigzag["num_parameters"] == 135_804_676
    cells = dict(zip(result.columns, result.rows[5], strict=True))
    assert (cells["GFLOPs"], cells["scan"], cells["linear"]) == ("189", "4.64", "184")
    assert result.rows[5][-3:] == ("0.348", "92.0", "0.810")
    assert "device" not in result.machine
    result.write_plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


def test_the_command_counts_without_timing(capsys, tmp_path):
    figures = tmp_path / "flops.json"
    assert bench.main(["flops", "--grids", "4", "--contestants", "dit", "zigzag8", "--json", str(figures)]) == 0
    assert "size B, 4 channels, patch 1" in capsys.readouterr().out
    assert [record["num_tokens"] for record in json.loads(figures.read_text())["records"]] == [16, 16]
    with pytest.raises(SystemExit):
        bench.main(["flops", "--repeats", "3"])


def test_the_command_times_all_five(capsys):
    tiny = ["--width", "16", "--depth", "2", "--grids", "2", "--batches", "2", "--repeats", "1", "--device", "cpu"]
    assert bench.main(["efficiency", *tiny]) == 0
    out = capsys.readouterr().out
    assert "TINY MODELS" in out
    assert [line.split()[2] for line in out.splitlines()[-5:]] == ["ZigMa", "VisionMamba", "parallel", "DiT", "U-ViT"]


def test_defaults_are_the_five():
    for subject in (efficiency, flops):
        for names in subject.DEFAULT_CONTESTANTS.values():
            assert [subject.CONTESTANTS[name].architecture for name in names] == [
                FAMILIES[name].architecture for name in FIVE
            ]
            assert dit_among(names) is not None
    assert [setting.grid**2 for setting in efficiency.DEFAULT_SETTINGS["cuda"]] == [1024, 4096]
