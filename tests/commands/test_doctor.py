import sys

from zigma_pl.cli.main import main


def test_report_names_versions_devices_and_backends(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for part in ("torch ", "lightning ", "cpu ", "cuda", "mamba_ssm", "reference"):
        assert part in report
    assert "correct, relative error" in report


def test_unavailable_backend_is_listed_with_its_reason(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)  # importing it now raises ImportError
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mamba_ssm "))
    assert "pip install" in line


def test_wrong_backend_is_called_wrong(capsys, monkeypatch):
    monkeypatch.setattr("zigma_pl.ops.selective_scan.self_check", lambda name: 0.5 if name == "cpu" else 1e-7)
    assert main(["doctor"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert len(lines) == 1
    assert lines[0].startswith("cpu")
