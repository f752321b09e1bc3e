from itertools import islice
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from PIL import Image

from zigma_pl.core.batch import RawBatch
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits, ImageDataModule
from zigma_pl.data.images import ImageDataset, ImageItem, to_uint8_tensor
from zigma_pl.encoders import KLAutoencoder


class Coloured(ImageDataset):
    """Image i is i everywhere in red, and brighter to the right in green, so that mirroring shows."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        image = Image.merge(
            "RGB",
            [Image.new("L", (16, 16), index), Image.linear_gradient("L").resize((16, 16)), Image.new("L", (16, 16))],
        )
        return ImageItem(image.rotate(90), captions=[f"caption {n} of {index}" for n in range(4)])


class ColouredData(ImageDataModule):
    has_captions = True

    def __init__(self, **options):
        sizes = {"batch_size": 4, "image_size_px": 16, "caption_dim": 8, "max_caption_tokens": 4}
        super().__init__(**{**sizes, "predict_captions": ["one", "two"], **options})

    def load_split(self, split):
        return Coloured()


class Recorder(L.LightningModule):
    """Trains one number, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(
            (batch.sample_ids.tolist(), batch.latents.sum().item(), batch.conditions["caption"].values.sum().item())
        )
        return self.weight * batch.latents.mean()

    def validation_step(self, batch, batch_idx):
        assert batch.latents.shape[1:] == (3, 16, 16)

    def predict_step(self, batch, batch_idx):
        assert batch.latents is None
        return batch.sample_ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, *, data=None, ckpt_path=None, **trainer_options):
    module = Recorder()
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=-1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **trainer_options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data or ColouredData(), ckpt_path=ckpt_path)
    return trainer, module.seen


class Rank(ColouredData):
    """Pretends to be one of several processes."""

    def __init__(self, rank, world_size, **options):
        super().__init__(**options)
        batches = SimpleNamespace(total=SimpleNamespace(processed=0))
        fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=batches))
        self.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, fit_loop=fit_loop, lightning_module=None
        )


def rows(loader, num_batches=None):
    """Return (sample id, image bytes, caption) of every sample."""
    result = []
    for raw in islice(loader, num_batches):
        images = [image.numpy().tobytes() for image in raw.images]
        result += list(zip(raw.sample_ids.tolist(), images, raw.captions, strict=True))
    return result


def loaded(**options):
    data = ColouredData(**options)
    data.setup("fit")
    return data


def test_workers_change_nothing():
    alone, helped = loaded(horizontal_flip=True), loaded(horizontal_flip=True, num_workers=2)
    assert rows(alone.train_dataloader(), 7) == rows(helped.train_dataloader(), 7)
    assert rows(alone.val_dataloader()) == rows(helped.val_dataloader())


def test_batch_size_changes_nothing():
    small, large = loaded(horizontal_flip=True, batch_size=2), loaded(horizontal_flip=True, batch_size=10)
    assert rows(small.train_dataloader(), 15) == rows(large.train_dataloader(), 3)
    assert rows(small.val_dataloader()) == rows(large.val_dataloader())


def test_mirroring_and_captions_vary_with_position_and_seed():
    data = loaded(horizontal_flip=True)
    seen = rows(data.train_dataloader(), 55)  # 20 epochs of 11
    first_image = [row for row in seen if row[2].endswith("of 3")]
    assert len(first_image) == 20
    assert len({image for _, image, _ in first_image}) == 2
    assert len({caption for _, _, caption in first_image}) == 4
    flips = [image == first_image[0][1] for _, image, _ in first_image]
    assert 3 <= sum(flips) <= 17
    assert rows(loaded(horizontal_flip=True, seed=1).train_dataloader(), 5) != seen[:20]
    assert len({image for _, image, _ in rows(loaded().train_dataloader(), 55)}) == 11


def test_evaluation_is_never_mirrored_and_its_captions_are_fixed():
    data = loaded(horizontal_flip=True)
    assert rows(data.val_dataloader()) == rows(data.val_dataloader())
    stored = [to_uint8_tensor(item.image).numpy().tobytes() for item in Coloured()]
    assert [image for _, image, _ in rows(data.val_dataloader())] == stored
    assert len({caption.split()[1] for _, _, caption in rows(data.val_dataloader())}) > 1


def test_loading_leaves_the_random_state_alone():
    data = loaded()
    state = torch.get_rng_state()
    rows(data.train_dataloader(), 3)
    rows(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_become_latents_and_back():
    data = loaded()
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(data.transfer_batch_to_device(raw, torch.device("cpu"), 0), 0)
    torch.testing.assert_close(batch.latents, raw.images.double().mul(2 / 255).sub(1).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(data.decode(batch.latents), raw.images / 255, rtol=0, atol=1e-6)
    assert data.decode(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 1]


@pytest.fixture(scope="module")
def kl_path(tmp_path_factory):
    from diffusers import AutoencoderKL

    path = tmp_path_factory.mktemp("kl")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, mid_block_add_attention=False,
    ).save_pretrained(path)  # fmt: skip
    return str(path)


def test_latents_of_a_kl_autoencoder(kl_path):
    data = loaded(autoencoder=kl_path)
    assert data.latent_shape == (4, 8, 8)
    raws = list(data.val_dataloader())
    batch = data.on_after_batch_transfer(raws[0], 0)
    assert batch.latents.shape == (4, 4, 8, 8)
    assert data.decode(batch.latents).shape == (4, 3, 16, 16)
    one = RawBatch(raws[0].sample_ids[2:3], raws[0].images[2:3], None, raws[0].captions[2:3])
    alone = data.on_after_batch_transfer(one, 0)
    torch.testing.assert_close(alone.latents[0], batch.latents[2], rtol=0, atol=1e-5)
    assert torch.equal(alone.conditions["caption"].values[0], batch.conditions["caption"].values[2])
    other_seed = loaded(autoencoder=kl_path, seed=1).on_after_batch_transfer(raws[0], 0)
    assert not torch.allclose(other_seed.latents, batch.latents)


def test_size_that_does_not_fit_the_autoencoder_is_found_before_training(kl_path):
    with pytest.raises(UserError, match="image_size_px 15 is not a multiple of 2"):
        ColouredData(autoencoder=kl_path, image_size_px=15).setup("fit")


def test_encoders_are_not_part_of_any_module(kl_path):
    data = loaded(autoencoder=kl_path)
    data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert isinstance(data._encoder, KLAutoencoder)
    assert not any(parameter.requires_grad for parameter in data._encoder._network.parameters())
    assert not data._encoder._network.training
    assert data.state_dict() == {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train_batches": 5},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 3, "val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("error:.*not resumable")
def test_resumed_training_sees_what_uninterrupted_training_sees(tmp_path, options, num_workers):
    accumulate = options.get("accumulate_grad_batches", 1)
    options = {"num_sanity_val_steps": 1, **options}

    def data():
        return ColouredData(num_workers=num_workers, horizontal_flip=True)

    _, whole = fit(tmp_path, data=data(), max_steps=8, **options)
    trainer, first = fit(tmp_path, data=data(), max_steps=4, **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, second = fit(tmp_path, data=data(), max_steps=8, ckpt_path=tmp_path / "last.ckpt", **options)
    assert len(whole) == 8 * accumulate
    assert [ids for ids, _, _ in whole] == [list(range(4 * step, 4 * step + 4)) for step in range(8 * accumulate)]
    assert first + second == whole


@pytest.mark.parametrize("moment", ["on_train_batch_end", "exception"])
def test_resume_from_a_checkpoint_saved_inside_a_step(tmp_path, moment):
    path = tmp_path / "inside.ckpt"

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if moment == "on_train_batch_end" and batch_idx == 2:
                trainer.save_checkpoint(path)

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if moment == "exception" and batch_idx == 3:
                raise RuntimeError("power cut")

        def on_exception(self, trainer, module, exception):
            trainer.save_checkpoint(path)

    if moment == "exception":
        with pytest.raises(RuntimeError, match="power cut"):
            fit(tmp_path, max_steps=6, callbacks=[Save()])
    else:
        fit(tmp_path, max_steps=6, callbacks=[Save()])
    _, rest = fit(tmp_path, max_steps=6, ckpt_path=path)
    assert [ids[0] for ids, _, _ in rest] == [12, 16, 20]


def test_predict_in_a_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(ColouredData, "load_split", lambda *_: pytest.fail("predict must not open the data set"))
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    batches = trainer.predict(Recorder(), datamodule=ColouredData(num_predict_samples=10))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_predict_combines_every_class_with_every_caption():
    data = ColouredData()
    data.num_classes = 2
    raw = data.raw_conditions(range(5))
    assert list(zip(raw.class_ids.tolist(), raw.captions, strict=True)) == [
        *((0, "one"), (1, "one"), (0, "two"), (1, "two"), (0, "one"))
    ]


def test_captions_to_sample_are_of_the_validation_split_in_a_fixed_order():
    captions = ColouredData(predict_captions=None).example_captions()
    items = [int(caption.split()[-1]) for caption in captions]
    assert sorted(items) == list(range(11))
    assert items != sorted(items)
    data = ColouredData(predict_captions=None, num_predict_samples=13, seed=0)
    assert [text for raw in data.predict_dataloader() for text in raw.captions] == captions + captions[:2]
    assert data.kept_with_model()["captions"] == captions
    assert ColouredData().kept_with_model()["captions"] == ["one", "two"]


def test_ranks_share_training_and_evaluation():
    ranks, alone = [Rank(rank, 2) for rank in range(2)], ColouredData(batch_size=8)
    assert sorted(row for data in ranks for row in rows(data.val_dataloader())) == rows(alone.val_dataloader())
    shares = [rows(data.train_dataloader(), 4) for data in ranks]
    together = [row for start in range(0, 16, 4) for share in shares for row in share[start : start + 4]]
    assert together == rows(alone.train_dataloader(), 4)
    captions = [raw.captions for data in ranks for raw in data.predict_dataloader()]
    assert captions == [["one"] * 4] * 2 + [["two"] * 4] * 2


def test_overfit_batches_is_refused(tmp_path):
    with pytest.raises(UserError, match="overfit_batches"):
        fit(tmp_path, max_steps=2, overfit_batches=2)


def test_more_classes_than_a_prepared_set_may_have_are_one_line():
    data = Digits()
    data.num_classes = 10**9
    with pytest.raises(UserError, match=r"Digits cannot be prepared .*num_classes"):
        data.content()
