"""Previews and `predict`. Kind: samples of conditions that the data do not have, or of others each time."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zigma_pl.backbones import ZigMa
from zigma_pl.conditioners import Condition, Map
from zigma_pl.core.errors import UserError
from zigma_pl.core.grid import tile
from zigma_pl.data import Digits, ImageFolder
from zigma_pl.interpolant.samplers import ODESampler
from zigma_pl.training.callbacks.preview import PreviewGrid
from zigma_pl.training.callbacks.sample_writer import SampleWriter
from zigma_pl.training.loggers import TensorBoard
from zigma_pl.training.module import GenerativeModule

NUM_PICTURES = 40


@pytest.fixture
def captioned(tmp_path):
    """A folder of captioned pictures."""
    root = tmp_path / "pictures"
    root.mkdir()
    lines = []
    for number in range(NUM_PICTURES):
        Image.new("RGB", (8, 8), (6 * number, 0, 0)).save(root / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": f"picture number {number}"}))
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


def data_of(root, **options):
    common = {"image_size_px": 8, "num_workers": 0, "batch_size": 4, "caption_dim": 8, "max_caption_tokens": 6}
    return ImageFolder(str(root), "caption", validation_share=0.3, **common, **options)


def module_for(data, **options):
    channels, height, width = data.latent_shape
    sizes = {"in_channels": channels, "latent_height": height, "latent_width": width, "patch_size": 2}
    given = {"num_classes": data.num_classes, "caption_dim": data.caption_dim, **options}
    backbone = ZigMa(**sizes, width=16, depth=1, **given)
    return GenerativeModule(backbone, sampler=ODESampler(num_steps=1))


def trainer_in(folder, *callbacks, logger=False, max_steps=2):
    return L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=logger,
    )


def sampled_conditions(monkeypatch):
    """Return a list that collects the conditions of every batch that is sampled."""
    seen, sample = [], GenerativeModule.sample

    def recorded(self, batch, guidance=None, **times):
        seen.append(batch.conditions)
        return sample(self, batch, guidance, **times)

    monkeypatch.setattr(GenerativeModule, "sample", recorded)
    return seen


def test_captions_are_of_the_validation_split_in_previews_and_in_predict(captioned, tmp_path, monkeypatch):
    data = data_of(captioned)
    module, seen = module_for(data), sampled_conditions(monkeypatch)
    trainer = trainer_in(tmp_path, PreviewGrid(num_samples=3))
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    captions = module.trained_on["captions"]
    held_out = {data.pixel_items("validation")[index].captions[0] for index in range(len(data.samples("validation")))}
    assert set(captions) <= held_out
    assert len(captions) == min(16, len(held_out))
    features = data.text_encoder(captions[:3], "cpu")[0]
    assert len(seen) == 2
    assert all(torch.equal(conditions["caption"].values, features) for conditions in seen)

    for name in ("as trained", "elsewhere"):
        given = {"predict_captions": ["a cat"]} if name == "elsewhere" else {}
        gone = data_of(tmp_path / "nowhere", num_predict_samples=5, **given)
        writer = SampleWriter(str(tmp_path / name))
        trainer_in(tmp_path, writer).predict(module_for(gone), gone, ckpt_path=tmp_path / "model.ckpt")
        table = json.loads((tmp_path / name / "samples.json").read_text())
        expected = ["a cat"] * 5 if given else captions[:5]
        assert [row["caption"] for row in table["samples"]] == expected


def test_a_model_without_captions_kept_takes_them_from_the_folder_or_names_the_option(captioned, tmp_path):
    data = data_of(captioned, num_predict_samples=2)
    trainer_in(tmp_path, SampleWriter(str(tmp_path / "out"))).predict(module_for(data), data)
    captions = [row["caption"] for row in json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]]
    assert captions == data.example_captions()[:2]
    gone = data_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere.*data\.predict_captions"):
        trainer_in(tmp_path).predict(module_for(gone), gone)


class DigitsWithOutlines(Digits):
    def encode_conditions(self, raw, device):
        conditions = super().encode_conditions(raw, device)
        if raw.images is not None:
            conditions["outline"] = Condition((raw.images > 127).float())
        return conditions


def test_maps_are_made_of_the_validation_pictures(tmp_path, monkeypatch):
    data = DigitsWithOutlines(batch_size=8, num_predict_samples=6)
    module, seen = module_for(data, conditioners={"outline": Map()}), sampled_conditions(monkeypatch)
    trainer_in(tmp_path, PreviewGrid(num_samples=6)).fit(module, datamodule=data)
    trainer_in(tmp_path, SampleWriter(str(tmp_path / "out"))).predict(module, data)
    assert len(seen) == 3
    pictures = {}
    for item in map(data.pixel_items("validation").__getitem__, range(len(data.samples("validation")))):
        pictures[tuple((item.pixels > 127).flatten().tolist())] = item.class_id
    for conditions in seen:
        outlines, classes = conditions["outline"].values, conditions["class"].values
        assert [pictures[tuple(outline.bool().flatten().tolist())] for outline in outlines] == classes.tolist()
        assert torch.equal(outlines, seen[0]["outline"].values)
    table = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [row["class_id"] for row in table["samples"]] == seen[0]["class"].values.tolist()


def test_previews_do_not_change_the_weights(tmp_path):
    weights = []
    for num_samples in (0, 4):
        torch.manual_seed(0)
        data = Digits(batch_size=8)
        module = module_for(data)
        trainer_in(tmp_path, PreviewGrid(num_samples), max_steps=3).fit(module, datamodule=data)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_grid_is_labelled_with_class_names_and_the_same_in_tensorboard(tmp_path):
    data = Digits(batch_size=8)
    trainer = trainer_in(
        tmp_path,
        PreviewGrid(num_samples=12, num_columns=6),
        logger=TensorBoard(str(tmp_path), "run", "v"),
        max_steps=1,
    )
    trainer.fit(module_for(data), datamodule=data)
    (path,) = (tmp_path / "run" / "v" / "previews").glob("*.png")
    grid = np.asarray(Image.open(path))
    black = Image.new("L", (8, 8))
    labels = np.asarray(tile([black] * 12, 6, [*"0123456789", "0", "1"]))
    assert grid.shape == labels.shape
    strips = slice(130, grid.shape[0] // 2)
    assert np.array_equal(grid[strips], labels[strips])
    events = EventAccumulator(str(tmp_path / "run" / "v")).Reload()
    (shown,) = events.Images("samples")
    assert (shown.width, shown.height) == Image.open(path).size


def test_an_unconditional_model_has_no_labels(tmp_path):
    data = Digits(batch_size=8, num_predict_samples=3)
    module = module_for(data, num_classes=None)
    trainer_in(tmp_path, SampleWriter(str(tmp_path / "out"), num_columns=3)).predict(module, data)
    assert Image.open(tmp_path / "out" / "grid.png").size == (3 * 130 + 2, 130 + 2)
    rows = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert rows[1] == {"sample_id": 1, "file": "00000001.png"}
