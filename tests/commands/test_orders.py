import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zigma_pl.cli.commands import orders
from zigma_pl.core.errors import UserError
from zigma_pl.scan import visit_order


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


def test_without_schemes_all_that_exist_for_the_grid_are_compared(in_tmp, capsys):
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
