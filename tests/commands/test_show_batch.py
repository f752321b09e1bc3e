import pytest
import torch
from PIL import Image

from zigma_pl.cli.commands.show_batch import draw_batch
from zigma_pl.cli.main import main
from zigma_pl.core.batch import RawBatch
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits


def test_from_a_row_to_a_picture(repository, tmp_path, capsys):
    row = ["--config", str(repository / "experiments/table1_zigzag8.yaml")]
    smoke = ["--config", str(repository / "configs/scale/smoke.yaml")]
    options = ["--data.root", str(tmp_path / "mm"), "--data.num_synthetic_items=20", "--num_samples=7"]
    out = tmp_path / "deep" / "batch.png"
    assert main(["show-batch", *row, *smoke, *options, "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_shows_the_pictures_of_the_split_with_their_classes(split):
    figure = draw_batch(Digits(), split, 5)
    shown = [ax for ax in figure.axes if ax.images]
    items = Digits().load_split(split)
    stored = {items[index].image.tobytes(): items[index].class_id for index in range(len(items))}
    assert len(shown) == 5
    for ax in shown:
        pixels = (ax.images[0].get_array().data * 255).round().astype("uint8").tobytes()
        assert ax.texts[0].get_text() == str(stored[pixels])


def test_clips_take_a_row_each(monkeypatch):
    data = Digits()
    clips = torch.zeros(2, 16, 1, 8, 8, dtype=torch.uint8)
    clips += torch.arange(16, dtype=torch.uint8)[:, None, None, None]
    monkeypatch.setattr(Digits, "train_dataloader", lambda self: [RawBatch(torch.arange(2), clips)])
    figure = draw_batch(data, "train", 2)
    shown = [round(float(ax.images[0].get_array().max()) * 255) for ax in figure.axes]
    assert shown == [0, 2, 4, 6, 9, 11, 13, 15] * 2


def test_wrong_options_are_refused(repository, capsys):
    with pytest.raises(UserError, match="choose train"):
        draw_batch(Digits(), "training", 5)
    row = ["--config", str(repository / "experiments/digits.yaml")]
    assert main(["show-batch", *row, "--out=batch.gif"]) == 1
    assert "must end in .png" in capsys.readouterr().err
