import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zigma_pl.cli.commands import paths
from zigma_pl.core.errors import UserError
from zigma_pl.scan.paths import named_orders


@pytest.mark.parametrize(("height", "width"), [(5, 12), (1, 1)])
def test_writes_a_png_in_a_new_folder_and_prints_its_path(
    height: int, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder" / "paths.png"
    assert paths.main(["--height", str(height), "--width", str(width), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        pixels = np.asarray(picture.convert("RGB"))
    coloured = np.ptp(pixels.astype(int), axis=2) > 60
    assert coloured.mean() > 0.001


def test_every_panel_draws_its_order_and_states_its_adjacency() -> None:
    figure = paths.draw_paths(6, 9, seed=4)
    panels = [axes for axes in figure.axes if axes.get_title()]
    names = [axes.texts[0].get_text() for axes in panels]
    assert names[:3] == ["sweep", "Hilbert", "random, seed 4"]
    assert names[3] == "zigzag 1: top-left, rows"
    assert len(names) == 11
    assert names == [name for name, _ in named_orders(6, 9, 4)]
    assert panels[0].get_title() == f"{100 * 48 / 53:.1f} % adjacent"
    assert {axes.get_title() for axes in [panels[1], *panels[3:]]} == {"100 % adjacent"}
    for axes, (_, order) in zip(panels, named_orders(6, 9, 4), strict=True):
        segments = axes.collections[0].get_segments()
        drawn = [segment[0] for segment in segments] + [segments[-1][1]]
        assert [int(y * 9 + x) for x, y in drawn] == order.tolist()
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "row 0 is drawn on top"


def test_seed_changes_the_random_panel_only() -> None:
    first, second = named_orders(4, 4, 0), named_orders(4, 4, 1)
    changed = [name for (name, a), (_, b) in zip(first, second, strict=True) if not np.array_equal(a, b)]
    assert changed == ["random, seed 0"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--width", "500"], "paths.width: must be a whole number from 1 to 128, got 500"),
        (["--out", "paths.bmpp"], "must end in .png, .pdf or .svg"),
    ],
)
def test_bad_options_get_one_clear_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        paths.main(argv)
    assert not list(tmp_path.iterdir())


def test_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "file" / "paths.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match=r"--out .*cannot be written"):
            paths.main(["--out", str(out)])


def test_size_that_is_no_number_exits_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        paths.main(["--height", "eight"])
    assert caught.value.code != 0
    assert "--height" in capsys.readouterr().err


def test_import_is_light() -> None:
    """The command line imports this module to list its commands, so torch and matplotlib must wait."""
    code = "import sys, zigma_pl.cli.commands.paths; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
