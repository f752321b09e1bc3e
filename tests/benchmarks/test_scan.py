"""bench scan: contestants do the same work, wrong ones are found, and the counts of the limit."""

import sys

import pytest
import torch

from zigma_pl.benchmarks import scan
from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.roofline import Rates, Work, scan_work
from zigma_pl.benchmarks.scan_contestants import SSD_NAMES, default_names, make_contestant
from zigma_pl.benchmarks.scan_kinds import SSD, make_arguments, make_order, make_ssd_arguments
from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops.backends import Backend, relative_errors
from zigma_pl.ops.selective_scan import reference
from zigma_pl.ops.ssd import reference as ssd_reference

CPU = torch.device("cpu")
OPTIONS = scan.ScanOptions(CPU, torch.float32, repeats=1, bytes_per_second=1e9)
MACHINE = {"device": "a device", "date": "2026-01-01"}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """The times do not matter here."""
    monkeypatch.setattr("zigma_pl.benchmarks.timing.MIN_SAMPLE_SECONDS", 1e-6)


@pytest.fixture
def mamba_ssm(monkeypatch):
    """mamba-ssm's function by our reference: channel-first rows in, channel-first rows out."""

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        rows = [None if t is None else t.transpose(1, 2) for t in (u, delta, B, C, z)]
        assert all(t.stride(-1) == 1 for t in (u, delta, B, C)), "the kernel would copy these first"
        assert delta_softplus == (delta_bias is not None)
        y = reference.run(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], delta_bias)
        return y.transpose(1, 2)

    module = type(sys)("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("zigma_pl.benchmarks.scan_contestants.BACKENDS.choose", lambda name, device: None)


@pytest.mark.usefixtures("mamba_ssm")
@pytest.mark.parametrize("name", ["mamba_ssm", "mamba_ssm+gathers"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_wrapping_of_mamba_ssm_keeps_outputs_and_gradients(name, fused):
    contestant = make_contestant(name, CPU)
    arguments = make_arguments((2, 9, 4, 3), torch.float32, CPU, fused)
    order = make_order(9, CPU) if contestant.follows_order else None
    errors = relative_errors(contestant, reference.run, arguments, visit_order=order)
    assert set(errors) == {"output", *arguments}
    assert max(errors.values()) < 1e-5
    assert ("gate" in arguments) == ("delta_bias" in arguments) == fused


def test_fused_arguments_are_laid_out_as_projections_leave_them():
    arguments = make_arguments((2, 9, 64, 3), torch.bfloat16, CPU, fused=True)
    assert arguments["gate"].stride() == (9 * 128, 128, 1)
    assert arguments["B"].stride() == arguments["C"].stride() == (9 * 8, 8, 1)
    assert arguments["A"].dtype == arguments["skip"].dtype == arguments["delta_bias"].dtype == torch.float32
    steps = torch.nn.functional.softplus(arguments["delta_bias"])
    assert 0.001 <= steps.min() <= steps.max() <= 0.101


@pytest.fixture
def ssd_kernels(monkeypatch):
    """mamba-ssm's SSD function by our reference, available on any device."""

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False):
        return ssd_reference.run(x, dt, A, B, C, D, z, dt_bias)

    module = type(sys)("mamba_ssm.ops.triton.ssd_combined")
    module.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("zigma_pl.ops.ssd.BACKENDS.choose", lambda name, device: Backend(name, None, None))


@pytest.mark.usefixtures("ssd_kernels")
@pytest.mark.parametrize("name", [name for name in SSD_NAMES if "cuda" not in name])
@pytest.mark.parametrize("fused", [False, True])
def test_contestants_of_ssd_compute_its_outputs_and_gradients(name, fused):
    contestant = make_contestant(name, CPU)
    arguments = make_ssd_arguments((2, 9, 128, 16), torch.float32, CPU, fused)
    order = make_order(9, CPU) if contestant.follows_order else None
    errors = relative_errors(contestant, ssd_reference.run, arguments, visit_order=order)
    assert set(errors) == {"output", *arguments}
    assert max(errors.values()) < 1e-5
    assert (arguments["B"].shape, arguments["dt"].shape) == ((2, 9, 1, 64), (2, 9, 2))
    assert contestant.follows_order == (name != "ssd-mamba_ssm")


@pytest.mark.usefixtures("ssd_kernels")
def test_ssd_is_timed_at_the_same_shapes_and_compared_with_its_own_peer():
    names = ("cpu", "ssd-cpu", "ssd-mamba_ssm")
    contestants = {name: make_contestant(name, CPU) for name in names}
    result = scan.run(OPTIONS, contestants, [(1, 4, 64, 2)], MACHINE, lambda result: None)
    by_name = {record["contestant"]: record for record in result.records}
    assert [by_name[name]["ratio_to"] for name in names] == [None, "ssd-mamba_ssm", "ssd-mamba_ssm"]
    assert by_name["ssd-mamba_ssm"]["ratio"] == 1
    rows, matrices = 4 * 64, 2 * 4 * 64
    assert by_name["ssd-cpu"]["forward"]["work"]["num_bytes"] == 4 * (2 * rows + matrices + 4)


def test_heads_of_ssd_fit_the_channels():
    for num_channels, heads in ((1536, (24, 64)), (96, (3, 32)), (2, (1, 2))):
        arguments = make_ssd_arguments((1, 4, num_channels, 2), torch.float32, CPU, False)
        assert arguments["x"].shape[2:] == heads


def test_ssd_takes_part_by_default():
    assert "ssd-cpu" in default_names(CPU)


def test_a_wrong_ssd_is_found():
    contestant = make_contestant("ssd-cpu", CPU)
    deaf = scan.ScanContestant("ssd-cpu", lambda arguments, order: contestant.run(arguments, None), kind=SSD)
    assert list(scan.findings(OPTIONS, {"ssd-cpu": deaf}, [16]))
    assert not list(scan.findings(OPTIONS, {"ssd-cpu": contestant}, [16]))


def test_rows_records_and_the_ratio():
    contestants = {name: make_contestant(name, CPU) for name in ("cpu", "reference")}
    saved = []
    result = scan.run(OPTIONS, contestants, [(1, 4, 2, 2), (2, 5, 2, 1)], MACHINE, lambda r: saved.append(len(r.rows)))
    assert saved == [2, 4]
    assert [row[1] for row in result.rows] == ["cpu", "reference"] * 2
    assert "pip install mambapy" in result.notes[-1]
    record = result.records[0]
    both = record["both"]
    assert both["seconds"]["num_samples"] == 1
    assert both["work"]["num_bytes"] == record["forward"]["work"]["num_bytes"] + record["backward"]["work"]["num_bytes"]
    assert both["share_of_limit"] == pytest.approx(both["limit_seconds"] / both["seconds"]["median"])
    assert both["limit_seconds"] == pytest.approx(both["work"]["num_bytes"] / 1e9)


@pytest.mark.parametrize("spoil", [lambda y: y * 1.001, lambda y: y * float("nan")])
def test_wrong_numbers_are_named_before_anything_is_timed(spoil, monkeypatch, capsys):
    contestant = make_contestant("cpu", CPU)
    wrong = scan.ScanContestant("cpu", lambda arguments, order: spoil(contestant.run(arguments, order)))
    with pytest.raises(WrongNumbersError, match=r"cpu is wrong with N = 2 in float32: relative error .* nothing was"):
        scan.run(OPTIONS, {"cpu": wrong}, [(1, 4, 2, 2)], MACHINE, lambda result: None)
    assert capsys.readouterr().err == ""


def test_a_scan_along_another_order_is_wrong():
    contestant = make_contestant("cpu", CPU)
    deaf = scan.ScanContestant("cpu", lambda arguments, order: contestant.run(arguments, None))
    assert list(scan.findings(OPTIONS, {"cpu": deaf}, [2]))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cqu", UserError, "--contestants cqu does not exist: choose from .*cpu, reference, mamba_ssm"),
        ("mamba_ssm", BackendUnavailable, "mamba_ssm"),
    ],
)
def test_contestants_that_cannot_take_part_are_named(name, error, message):
    with pytest.raises(error, match=message):
        make_contestant(name, CPU)


def test_gpu_orders_are_zigzags_where_the_grid_is_square():
    order = make_order(9, torch.device("cpu"))
    assert sorted(order.tolist()) == list(range(9))
    assert order.dtype == torch.int32


def test_work_is_counted_by_hand():
    # (B, L, E, N) = (2, 3, 5, 7) in 2 bytes: rows of 30, matrices of 42 elements, 210 state updates.
    work = scan_work((2, 3, 5, 7), 2, gated=True)
    assert work["forward"] == Work(2 * (4 * 30 + 2 * 42), 210, 4 * 210)
    assert work["backward"] == Work(2 * (7 * 30 + 4 * 42), 210, 12 * 210)
    assert work["both"].num_bytes == work["forward"].num_bytes + work["backward"].num_bytes
    assert scan_work((2, 3, 5, 7), 2, gated=False)["forward"].num_bytes == 2 * (3 * 30 + 2 * 42)


def test_the_limit_is_the_longest_of_its_parts():
    work = Work(num_bytes=100, exponentials=10, multiply_adds=40)
    assert work.least_seconds(Rates(50.0)) == 2.0
    assert work.least_seconds(Rates(50.0, exponentials_per_second=2.0, multiply_adds_per_second=40.0)) == 5.0
    assert work.least_seconds(Rates(50.0, exponentials_per_second=20.0, multiply_adds_per_second=4.0)) == 10.0


def test_an_h100_needs_at_least_the_published_time_for_its_exponentials(monkeypatch):
    properties = type("Properties", (), {"clock_rate": 1_755_000, "multi_processor_count": 132, "major": 9, "minor": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    rates = Rates.of(torch.device("cuda"), 2.97e12)
    work = scan_work((8, 4096, 1536, 16), 2, gated=True)
    assert work["forward"].exponentials / rates.exponentials_per_second == pytest.approx(0.22e-3, rel=0.02)
    assert rates.multiply_adds_per_second == pytest.approx(2.97e13, rel=0.01)
