"""Tables, cells, JSON files, pictures."""

import json

import pytest

from zigma_pl.benchmarks import plots
from zigma_pl.benchmarks.report import (
    BenchmarkResult,
    figure_cell,
    measured,
    memory_cell,
    percent_cell,
    ratio_cell,
    time_cell,
)
from zigma_pl.benchmarks.timing import Measurement, Spread
from zigma_pl.core.errors import UserError
from zigma_pl.core.machine import choose_device, describe_machine

MACHINE = {"date": "2026-01-01", "device": "NVIDIA H100"}
GONE = Measurement(None, None)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "-"),
        (0.0123, "0.012"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (45678.9, "45679"),
    ],
)
def test_figures_have_three_digits(value, cell):
    assert figure_cell(value) == cell


def test_cells_of_a_measurement():
    measurement = Measurement(Spread(0.0125, 0.012, 0.013, 5), 17_800_000_000)
    assert (time_cell(measurement), memory_cell(measurement)) == ("12.5", "17.8")
    assert (time_cell(GONE), memory_cell(GONE), percent_cell(None)) == ("out of memory", "-", "-")
    assert percent_cell(0.356) == "36 %"
    record = measured(measurement, 8)
    assert record["seconds"] == {"median": 0.0125, "lower_quartile": 0.012, "upper_quartile": 0.013, "num_samples": 5}
    assert record["per_second"] == 640
    gone = measured(GONE, 8)
    assert gone == {
        "out_of_memory": True,
        "seconds": None,
        "peak_memory_bytes": None,
        "samples": (),
        "per_second": None,
    }


def test_ratios_are_given_with_their_spread():
    assert ratio_cell(Spread(0.99812, 0.995, 1.001, 9)) == "0.998 ±0.003"
    assert ratio_cell(None) == "-"
    result = BenchmarkResult("forward", MACHINE, [], ("ratio", "ms"), plots.plot_forward)
    result.rows += [("12.998 ±0.003", "1"), ("-", "10")]
    assert result.table().splitlines()[-1] == f"{'-':>13}  10"  # figures stand to the right


def test_a_batch_size_of_one_grid_is_left_to_the_table_when_another_has_a_line():
    def drawn(*settings):
        records = [
            {"label": "DiT", "family": "DiT", "execution": "eager", "grid": grid, "batch_size": batch_size}
            | measured(Measurement(Spread.of([0.1]), 1), batch_size)
            for grid, batch_size in settings
        ]
        result = BenchmarkResult("forward", MACHINE, ["a note"], (), plots.plot_forward, records=records)
        return [line.get_label() for line in result.plot(result).axes[0].lines]

    assert drawn((8, 1), (16, 1), (8, 16)) == ["DiT"]
    assert drawn((8, 1), (8, 16)) == ["DiT, batch 1", "DiT, batch 16"]


def test_table_and_json(tmp_path):
    result = BenchmarkResult("forward", MACHINE, ["a note"], ("backbone", "ms"), plots.plot_forward)
    result.rows += [("ZigMa", "1.23"), ("DiT", "out of memory"), ("U-ViT", "12.3")]
    result.records += [{"label": "ZigMa"}]
    assert result.table().splitlines() == [
        "date 2026-01-01, device NVIDIA H100",
        "a note",
        "",
        "backbone             ms",
        "ZigMa              1.23",
        "DiT       out of memory",
        "U-ViT              12.3",
    ]
    result.write_json(tmp_path / "figures.json", complete=False)
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["machine"] == MACHINE
    assert content["records"] == [{"label": "ZigMa"}]
    assert content["complete"] is False


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    result = BenchmarkResult("forward", MACHINE, [], ("ms",), plots.plot_forward)
    with pytest.raises(UserError, match=r"--json .*cannot be written"):
        result.write_json(tmp_path, complete=True)


# -------------------------------------------------------------------------------------------------------- pictures
def model_record(label, family, execution, grid, seconds, peak, **more):
    measurement = Measurement(None if seconds is None else Spread(seconds, seconds, seconds, 3), peak)
    described = {"label": label, "family": family, "execution": execution, "num_orders": None}
    return {"grid": grid, "batch_size": 1, **described, **measured(measurement, 1), **more}


def lines_of(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_figure_4_a_b_has_speed_and_memory_over_the_grid():
    records = [
        model_record("ZigMa, CUDA graph", "ZigMa zigzag-8", "graph", 64, 0.01, 2e9),
        model_record("ZigMa, CUDA graph", "ZigMa zigzag-8", "graph", 32, 0.005, 1e9),
        model_record("DiT", "DiT", "eager", 32, 0.02, 3e9),
        model_record("DiT", "DiT", "eager", 64, None, None),
    ]
    figure = plots.plot_forward(
        BenchmarkResult("forward", MACHINE, ["what: and how"], (), plots.plot_forward, [], records)
    )
    speed, memory = figure.axes
    assert lines_of(speed) == {"ZigMa, CUDA graph": [[32, 200], [64, 100]], "DiT (out of memory at 64)": [[32, 50]]}
    assert lines_of(memory) == {"ZigMa, CUDA graph": [[32, 1], [64, 2]], "DiT (out of memory at 64)": [[32, 3]]}
    assert (speed.get_ylabel(), memory.get_ylabel()) == ("frames/s", "peak memory (GB)")
    assert speed.get_xticks().tolist() == [32, 64]
    assert "NVIDIA H100, 2026-01-01" in figure.get_suptitle()


def test_figure_4_c_d_is_over_the_orders_and_leaves_out_memory_that_was_not_counted():
    records = [model_record("", "parallel Mamba", "eager", 16, 0.01 * k, None) | {"num_orders": k} for k in range(1, 4)]
    figure = plots.plot_order(BenchmarkResult("order", MACHINE, ["a note"], (), plots.plot_order, [], records))
    (speed,) = figure.axes
    assert speed.get_xlabel() == "number of scan orders"
    assert lines_of(speed)["parallel Mamba"] == [[k, pytest.approx(100 / k)] for k in range(1, 4)]


def test_bars_of_training_and_of_the_scan():
    records = [
        model_record("ZigMa", "ZigMa zigzag-8", "compiled", 32, 0.5, 8e9),
        model_record("DiT", "DiT", "eager", 32, None, None),
    ]
    figure = plots.plot_train(BenchmarkResult("train", MACHINE, ["a note"], (), plots.plot_train, [], records))
    speed, memory = figure.axes
    assert [bar.get_width() for bar in speed.patches] == [2, 0]
    assert [text.get_text() for text in speed.texts] == ["2.00", "out of memory"]
    assert [text.get_text() for text in memory.texts] == ["8.00", "out of memory"]
    time = measured(Measurement(Spread(0.001, 0.001, 0.001, 1), None)) | {"limit_seconds": 0.0005}
    record = {"shape": [1, 2, 3, 4], "contestant": "cuda", "forward": time, "backward": time, "both": time}
    figure = plots.plot_scan(BenchmarkResult("scan", MACHINE, ["a note"], (), plots.plot_scan, [], [record]))
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1, 1]
    assert figure.axes[0].texts[0].get_text() == "2.00"


# --------------------------------------------------------------------------------------------------------- machine
def test_the_header_says_what_the_figures_depend_on():
    machine = describe_machine(choose_device("cpu"), commit="abc1234")
    assert {"date", "device", "torch", "threads", "python", "commit"} == set(machine)
    assert machine["commit"] == "abc1234"
    assert len(str(machine["date"])) == 10
    assert describe_machine(choose_device("cpu"))["commit"]


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="--device cuda: PyTorch sees no CUDA device"):
        choose_device("cuda")
