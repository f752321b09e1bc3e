"""bench forward, train and order on the CPU with tiny models: rows, ratios, pictures, and what does not fit."""

import math
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from zigma_pl.benchmarks import forward, model_table, order, train
from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.model_table import Setting, compile_notes, rivals_among, with_captions
from zigma_pl.benchmarks.models import FAMILIES, ModelOptions

OPTIONS = ModelOptions(torch.device("cpu"), torch.float32, repeats=2, size=None, width=16, depth=2)
MACHINE = {"date": "2026-01-01", "device": "a device"}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """The times do not matter here."""
    monkeypatch.setattr("zigma_pl.benchmarks.timing.MIN_SAMPLE_SECONDS", 1e-6)


def run(subject, names, settings, save=lambda result: None):
    return subject.run(OPTIONS, {name: subject.CONTESTANTS[name] for name in names}, settings, MACHINE, save)


@pytest.fixture
def unchecked(monkeypatch):
    """The checks have tests of their own."""
    for subject in (forward, train, order):
        monkeypatch.setattr(subject, "findings", lambda *arguments, **options: ())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("subject", [forward, train], ids=["forward", "train"])
def test_every_contestant_has_a_row_and_a_record(subject, tmp_path):
    saved = []
    names = ["zigzag8", "sweep", "dit", "uvit"]
    result = run(subject, names, [Setting(2, 1), Setting(4, 3)], lambda r: saved.append(len(r.records)))
    assert saved == [4, 8]
    assert [row[:3] for row in result.rows[4:]] == [
        ("4", "3", "ZigMa zigzag-8"),
        ("4", "3", "ZigMa sweep"),
        ("4", "3", "DiT"),
        ("4", "3", "U-ViT"),
    ]
    zigzag, sweep, dit, _ = result.records[4:]
    assert zigzag["per_second"] == pytest.approx(3 / zigzag["seconds"]["median"])
    turns = [other / own for own, other in zip(zigzag["samples"], sweep["samples"], strict=True)]
    assert zigzag["ratios"]["to sweep"]["median"] == pytest.approx(statistics.median(turns))
    assert dit["ratios"] == {"to DiT, compiled": None, "to sweep": None}
    assert zigzag["num_parameters"] == sweep["num_parameters"] > dit["num_parameters"] > 0
    assert zigzag["num_tokens"] == 16
    result.write_plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("unchecked")
def test_orders_one_to_eight_at_one_depth(tmp_path):
    result = run(order, ["zigzag", "parallel"], [Setting(2, 1)])
    assert [record["num_orders"] for record in result.records] == [k for k in range(1, 9) for _ in range(2)]
    zigzag, parallel = (
        [record["num_parameters"] for record in result.records if record["family"] == family]
        for family in ("ZigMa zigzag", "parallel Mamba")
    )
    assert len(set(zigzag)) == 1
    (added,) = {after - before for before, after in pairwise(parallel)}  # as many with each order: the depth stays
    assert added > 0
    one, eight = result.records[0], result.records[14]
    assert one["ratios"]["to one order"]["median"] == 1
    turns = [other / own for own, other in zip(eight["samples"], one["samples"], strict=True)]
    assert eight["ratios"]["to one order"]["median"] == pytest.approx(statistics.median(turns))
    result.write_plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


@pytest.mark.usefixtures("unchecked")
def test_a_preset_keeps_its_depth_whatever_the_number_of_orders(monkeypatch):
    timed = []
    monkeypatch.setattr(order.ModelTable, "fill", lambda table, settings, save: timed.append(table.options))
    options = replace(OPTIONS, size="S", width=None, depth=None)
    order.run(options, {"parallel": order.CONTESTANTS["parallel"]}, [], MACHINE, lambda result: None)
    assert [(options.size, options.width, options.depth) for options in timed] == [(None, 384, 24)]


@pytest.mark.parametrize("subject", [forward, train, order], ids=["forward", "train", "order"])
def test_wrong_numbers_end_it_before_anything_is_timed(subject, monkeypatch, capsys):
    monkeypatch.setattr(subject, "findings", lambda *arguments, **options: ["DiT is wrong", "U-ViT is wrong"])
    monkeypatch.setattr(model_table, "measure", None)  # calling it would be an error
    with pytest.raises(WrongNumbersError) as error:
        run(subject, list(subject.CONTESTANTS)[:1], [Setting(2, 1)])
    name = subject.__name__.rpartition(".")[2]
    assert str(error.value).splitlines() == [
        f"bench {name}: DiT is wrong; nothing was timed",
        f"bench {name}: U-ViT is wrong; nothing was timed",
    ]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("unchecked")
def test_numbers_that_are_not_finite_end_it(monkeypatch):
    build = model_table.build

    def broken(*arguments):
        backbone = build(*arguments)
        torch.nn.init.constant_(next(backbone.parameters()), math.nan)
        return backbone

    monkeypatch.setattr(model_table, "build", broken)
    for subject in (forward, train):
        with pytest.raises(WrongNumbersError, match="DiT is not finite at"):
            run(subject, ["dit"], [Setting(2, 1)])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("subject", [forward, train], ids=["forward", "train"])
def test_what_does_not_fit_is_said_in_its_cell_and_the_rest_goes_on(subject, monkeypatch, tmp_path):
    build = model_table.build

    def limited(contestant, grid, options):
        if contestant.architecture == "DiT" and grid == (4, 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(contestant, grid, options)

    monkeypatch.setattr(model_table, "build", limited)
    result = run(subject, ["sweep", "dit"], [Setting(2, 1), Setting(4, 1)])
    assert [row[4] == "out of memory" for row in result.rows] == [False, False, False, True]
    assert [record["out_of_memory"] for record in result.records] == [False, False, False, True]
    assert result.records[3]["per_second"] is None
    assert "out of memory" in result.table().splitlines()[-1]
    result.write_plot(tmp_path / "picture.png")


def test_a_training_step_changes_the_weights_and_leaves_no_gradients():
    backbone = model_table.build(FAMILIES["dit"], (2, 2), OPTIONS)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    steps, loss = train.prepare(OPTIONS, backbone, backbone, Setting(2, 3))
    steps(2)
    assert loss > 0
    after = backbone.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name, _ in backbone.named_parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_ratios_compare_the_same_execution():
    rivals = rivals_among(["zigzag8", "zigzag8-graph", "sweep-graph", "dit"])
    assert rivals["to sweep"] == {"zigzag8": "sweep", "zigzag8-graph": "sweep-graph", "sweep-graph": "sweep-graph"}
    assert set(rivals["to DiT, compiled"].values()) == {"dit-compiled"}
    assert "to no captions" not in rivals


def test_orders_of_every_mixer_are_compared_with_its_sweep():
    names = ["random8-fast-graph", "mamba2-graph", "mamba2-random8-fast", "hybrid", "hybrid-random8", "conv-hilbert"]
    expected = ["sweep-fast-graph", "mamba2-sweep-graph", "mamba2-sweep-fast", *["hybrid-sweep"] * 2, "conv-sweep"]
    assert rivals_among([*names, "attention", "uvit"])["to sweep"] == dict(zip(names, expected, strict=True))


def test_captioned_steps_are_compared_with_captioned_dit_and_uncaptioned_steps():
    contestants = with_captions({name: FAMILIES[name] for name in ("zigzag8", "dit-compiled")})
    assert list(contestants) == ["zigzag8", "dit-compiled", "zigzag8+captions", "dit-compiled+captions"]
    assert [contestant.has_captions for contestant in contestants.values()] == [False, False, True, True]
    rivals = rivals_among(contestants)
    assert rivals["to DiT, compiled"]["zigzag8+captions"] == "dit-compiled+captions"
    assert rivals["to sweep"]["zigzag8+captions"] == "sweep+captions"
    assert rivals["to no captions"]["zigzag8+captions"] == "zigzag8"


@pytest.mark.usefixtures("unchecked")
def test_captions_and_clips_reach_the_network():
    contestants = with_captions({"zigzag8": FAMILIES["zigzag8"]})
    options = replace(OPTIONS, num_frames=3)
    result = train.run(options, contestants, [Setting(2, 2)], MACHINE, lambda result: None)
    plain, captioned = result.records
    assert plain["num_tokens"] == captioned["num_tokens"] == 12
    assert plain["ratios"]["to no captions"]["median"] == 1
    assert captioned["num_parameters"] > plain["num_parameters"]
    assert captioned["label"] == "ZigMa zigzag-8, captions"
    assert "clips/s" in result.columns
    assert "77 tokens" in result.table()


def test_ratios_compare_with_the_fastest_dit():
    rivals = rivals_among(["zigzag8-compiled-graph", "dit", "dit-compiled", "dit-compiled-graph"])
    assert set(rivals["to DiT, compiled, CUDA graph"].values()) == {"dit-compiled-graph"}


def test_the_header_says_what_is_compiled():
    assert compile_notes({"dit": FAMILIES["dit"]}, OPTIONS) == []
    (note,) = compile_notes({"dit": FAMILIES["dit-compiled-graph"]}, OPTIONS)
    assert "each block" in note
    (note,) = compile_notes({"dit": FAMILIES["dit-compiled"]}, replace(OPTIONS, compile_scope="model"))
    assert "the whole model" in note


def test_defaults_exist():
    for subject in (forward, train, order):
        for names in subject.DEFAULT_CONTESTANTS.values():
            assert set(names) <= set(subject.CONTESTANTS)
        assert "cpu" in subject.DEFAULT_SETTINGS
        assert not any("graph" in name for name in subject.DEFAULT_CONTESTANTS["cpu"])


def test_torch_numpy_einops_and_matplotlib_are_all_it_needs():
    absent = ("lightning", "omegaconf", "jsonargparse", "diffusers", "torchmetrics", "tensorboard", "safetensors")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import zigma_pl.cli.commands.bench, zigma_pl.runtime.graphed_sampling\n"
        "from zigma_pl.benchmarks import efficiency, flops, forward, order, plots, scan, train"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
