import io
import json
import tarfile
from itertools import islice

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.callbacks.preview import PreviewGrid
from zigma_pl.data import OfficialShards
from zigma_pl.data.official_shards import LATENT_SCALE
from zigma_pl.errors import UserError

# Fields of a sample in each of the release's sets, config/data/*.yaml; T and d are 77 and 768 there too.
CELEBA = {
    "img_feature256.npy": (4, 32, 32),
    "img_feature512.npy": (4, 64, 64),
    "caption_clip_feature.npy": (2, 77, 768),
}
COCO = {"img_feature256.npy": (4, 32, 32), "caption_feature.npy": (2, 77, 768)}
FACESHQ = {"latent.npy": (4, 128, 128)}
UCF101 = {"frame_feature256.npy": (18, 4, 32, 32)}


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def picture(index, kind):
    stream = io.BytesIO()
    Image.new("RGB", (40, 32), (20 * index, 0, 0)).save(stream, kind)
    return stream.getvalue()


def members(index, arrays, *, image, captions, class_id):
    rng = np.random.default_rng(index)
    fields = {f"image.{image}": picture(index, {"jpg": "jpeg"}.get(image, image))} if image else {}
    fields |= {name: npy(rng.standard_normal(shape).astype(np.float16)) for name, shape in arrays.items()}
    if captions:
        fields["caption.json"] = json.dumps([f"{index} first", f"{index} second"]).encode()
    if class_id is not None:
        fields |= {"cls_id.cls": str(class_id).encode(), "cls_name.json": b'"Archery"'}
    return fields


def write_shards(root, arrays, sizes=(3, 2, 2), split="train", image="jpg", captions=False, num_classes=None):
    """Write shards as the release has them; sample i of a split has latents drawn from seed i."""
    root.mkdir(exist_ok=True)
    index = 0
    for number, size in enumerate(sizes):
        with tarfile.open(root / f"{split}-{number:06d}.tar", "w") as archive:
            for _ in range(size):
                class_id = None if num_classes is None else index % num_classes
                fields = members(index, arrays, image=image, captions=captions, class_id=class_id)
                for field, content in fields.items():
                    member = tarfile.TarInfo(f"{index:010d}.{field}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                index += 1
    return root


@pytest.fixture
def module(tmp_path):
    def make(**options):
        root = tmp_path / "shards"
        return OfficialShards(
            str(root), index_folder=str(tmp_path / "counts"), **{"batch_size": 2, "num_workers": 0, **options}
        )

    return make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "shards"


def encoded(data, loader, num_batches=None):
    return [data.on_after_batch_transfer(raw, 0) for raw in islice(loader, num_batches)]


def test_stored_latents_are_scaled_and_nothing_else(root, module):
    write_shards(root, CELEBA, captions=True)
    data = module()
    data.setup("fit")
    data.setup("test")
    assert data.latent_shape == (4, 32, 32)
    assert (data.num_classes, data.caption_dim, data.num_frames) == (None, None, None)
    batches = encoded(data, data.test_dataloader())
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 1]]  # samples 5 and 6 of the last shard
    expected = np.stack([np.random.default_rng(i).standard_normal((4, 32, 32)).astype(np.float16) for i in (5, 6)])
    torch.testing.assert_close(batches[0].latents, torch.tensor(expected).float() * LATENT_SCALE, rtol=0, atol=0)
    assert batches[0].condition is None
    assert data.val_dataloader().__len__() == 1
    ids = [batch.sample_ids.tolist() for batch in encoded(data, data.train_dataloader(), 5)]
    assert ids == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_each_epoch_has_every_training_sample_once_over_the_ranks(root, module):
    write_shards(root, CELEBA, sizes=(3, 2, 4, 1))
    data = module(num_held_out_shards=1)
    samples = data.live_samples("train", horizontal_flip=False)
    assert len(samples) == 9
    pairs = []
    for rank in range(2):
        order = samples.training_order(1, seed=0, rank=rank, world_size=2, steps_done=lambda: 0)
        pairs += [pair for batch in islice(order, 9) for pair in batch]
    for epoch in range(2):
        assert sorted(index for position, index in pairs if position // 9 == epoch) == list(range(9))


@pytest.mark.parametrize("arrays", [CELEBA, COCO], ids=["celeba", "coco"])
def test_stored_captions(root, module, arrays):
    write_shards(root, arrays, captions=True)
    data = module(condition="caption", batch_size=4)
    assert data.caption_dim == 768  # known before any data is read
    data.setup("fit")
    raws = list(islice(data.train_dataloader(), 10))
    texts = {text for raw in raws for text in raw.captions}
    assert texts == {f"{index} {which}" for index in range(5) for which in ("first", "second")}
    features = {}
    for raw in raws:
        assert raw.caption_features.shape == (4, 77, 768)
        for text, feature in zip(raw.captions, raw.caption_features, strict=True):
            assert torch.equal(features.setdefault(text, feature), feature)
    assert len({feature.sum().item() for feature in features.values()}) == 10
    batch = data.on_after_batch_transfer(raws[0], 0)
    assert batch.condition.shape == (4, 77, 768)
    assert batch.caption_mask is None


def test_predict_takes_the_captions_of_the_test_split_in_turn(root, module, tmp_path, kl_path):
    write_shards(root, CELEBA, captions=True)
    write_shards(root, CELEBA, captions=True, split="test", sizes=(1, 2))
    data = module(condition="caption", num_predict_samples=5, autoencoder=kl_path)
    data.setup("predict")
    batches = encoded(data, data.predict_dataloader())
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(batch.latents is None for batch in batches)
    whole = data.conditions(range(5))
    assert torch.equal(whole.condition, torch.cat([batch.condition for batch in batches]))
    assert [data.condition(sample_id).caption[0] for sample_id in range(5)] == ["0", "1", "2", "0", "1"]


def test_classes_of_clips(root, module):
    write_shards(root, UCF101, image=None, num_classes=3)
    data = module(latents="frame_feature256.npy", condition="class", num_classes=3, num_frames=16)
    assert data.num_classes == 3
    assert data.latent_shape == (16, 4, 32, 32)
    data.setup("test")
    data.setup("fit")
    batch = encoded(data, data.test_dataloader())[0]
    assert batch.latents.shape == (2, 16, 4, 32, 32)
    assert batch.condition.tolist() == [2, 0]
    whole = torch.tensor(np.random.default_rng(5).standard_normal((18, 4, 32, 32)).astype(np.float16)).float()
    assert torch.equal(batch.latents[0], whole[:16] * LATENT_SCALE)
    starts = set()
    for raw in islice(data.train_dataloader(), 10):
        for clip in raw.moments:
            (start,) = {
                start for index in range(5) for start in range(3) if torch.equal(clip, clips(index)[start : start + 16])
            }
            starts.add(start)
    assert starts == {0, 1, 2}
    with pytest.raises(UserError, match=r"cls_id\.cls' is class 2, but classes are 0 to 1: set data.num_classes"):
        encoded(*two_classes(module))


def clips(index):
    return torch.tensor(np.random.default_rng(index).standard_normal((18, 4, 32, 32)).astype(np.float16)).float()


def two_classes(module):
    data = module(latents="frame_feature256.npy", condition="class", num_classes=2)
    data.setup("test")
    return data, data.test_dataloader()


def test_latents_at_1024(root, module):
    write_shards(root, FACESHQ, sizes=(1, 1), image="png")
    write_shards(root, FACESHQ, sizes=(2,), image="png", split="test")
    data = module(latents="latent.npy", image_size_px=1024)
    data.setup("fit")
    assert data.latent_shape == (4, 128, 128)
    assert [len(data.stored_samples(split)) for split in ("train", "validation", "test")] == [2, 2, 2]


def test_pictures_instead_of_latents(root, module):
    write_shards(root, CELEBA, captions=True)
    data = module(latents="image", condition="caption", image_size_px=16, horizontal_flip=True, caption_dim=8)
    data.setup("fit")
    assert data.latent_shape == (3, 16, 16)
    assert data.caption_dim == 8
    raw = next(iter(data.val_dataloader()))
    assert raw.images.shape == (2, 3, 16, 16)
    assert [round(image[0].float().mean().item() / 20) for image in raw.images] == [5, 6]
    assert [caption[0] for caption in raw.captions] == ["5", "6"]
    assert [len(raw.captions) for raw in islice(data.train_dataloader(), 3)] == [2, 2, 2]
    assert len(data.conditions(range(3)).condition) == 3


def test_counts_are_made_once_and_kept_elsewhere(root, module, monkeypatch, tmp_path, capsys):
    write_shards(root, CELEBA)
    before = sorted(root.iterdir())
    module().prepare_data()
    assert "counting samples" in capsys.readouterr().err
    assert sorted(root.iterdir()) == before
    assert len(list((tmp_path / "counts").iterdir())) == 1
    monkeypatch.setattr("zigma_pl.data.shard_counts.open_shard", lambda _: pytest.fail("counted again"))
    assert len(module().live_samples("train", horizontal_flip=False)) == 5


@pytest.mark.parametrize("change", ["other shard", "new shard", "lost shard", "broken"])
def test_stale_counts_are_refused(root, module, change, tmp_path):
    write_shards(root, CELEBA)
    module().prepare_data()
    (index,) = (tmp_path / "counts").iterdir()
    name = {"new shard": "train-000003.tar", "broken": "cannot be used"}.get(change, "train-000001.tar")
    if change == "other shard":
        content = (root / name).read_bytes()
        (root / name).write_bytes(content + bytes(10240))
    elif change == "new shard":
        (root / name).write_bytes((root / "train-000001.tar").read_bytes())
    elif change == "lost shard":
        (root / name).unlink()
    else:
        index.write_text("{")
    with pytest.raises(UserError, match=name) as error:
        module().prepare_data()
    assert str(index) in str(error.value)
    assert "remove it" in str(error.value)
    index.unlink()
    module().prepare_data()


class Predictor(L.LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch.sample_ids.tolist()


def test_predict_without_stored_captions_needs_no_shards(module, kl_path):
    data = module(autoencoder=kl_path, num_predict_samples=3)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer.predict(Predictor(), datamodule=data) == [[0, 1], [2]]


@pytest.fixture(scope="module")
def kl_path(tmp_path_factory):
    from diffusers import AutoencoderKL

    path = tmp_path_factory.mktemp("kl")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, norm_num_groups=2, layers_per_block=1, mid_block_add_attention=False,
        latent_channels=4, scaling_factor=LATENT_SCALE,
    ).save_pretrained(path)  # fmt: skip
    return str(path)


def test_decoding_is_the_autoencoders(root, module, kl_path):
    from diffusers import AutoencoderKL

    write_shards(root, CELEBA)
    data = module(autoencoder=kl_path)
    data.setup("test")
    batch = encoded(data, data.test_dataloader())[0]
    stored = torch.tensor(np.random.default_rng(5).standard_normal((1, 4, 32, 32)).astype(np.float16)).float()
    with torch.no_grad():
        expected = AutoencoderKL.from_pretrained(kl_path).decode(stored).sample
    torch.testing.assert_close(data.decode(batch.latents[:1]), (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_another_latent_space_is_refused(root, module, tmp_path, kl_path):
    config = json.loads((tmp_path.__class__(kl_path) / "config.json").read_text())
    other = tmp_path / "sdxl"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    with pytest.raises(UserError, match=r"'scale': 0\.13025.*the one that they were made with"):
        _ = module(autoencoder=str(other)).latent_shape


def test_without_an_autoencoder_previews_and_predict_are_refused_at_once(root, module):
    write_shards(root, CELEBA)
    data = module()
    with pytest.raises(UserError, match=r"--preview\.num_samples 0"):
        data.setup("predict")
    for num_samples in (4, 0):
        data.trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[PreviewGrid(num_samples)]
        )
        if num_samples:
            with pytest.raises(UserError, match=r"data\.autoencoder"):
                data.setup("fit")
        else:
            data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": True}, "no latents of mirrored"),
        ({"predict_captions": ["A cat."]}, "predict_captions"),
        ({"num_held_out_shards": 0}, "at least 1"),
        ({"image_size_px": 512}, r"shape \(4, 32, 32\).*ask for \(4, 64, 64\).*image_size_px"),
        ({"latents": "latent.npy"}, r"field latent\.npy.*img_feature256\.npy"),
        ({"condition": "class"}, r"field cls_id\.cls"),
        ({"train_shards": "training-*.tar"}, "no samples for train"),
        ({"num_held_out_shards": 3}, "no samples for train"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(root, module, options, message):
    write_shards(root, CELEBA, captions=True)
    with pytest.raises(UserError, match=message) as error:
        module(**options).setup("fit")
    assert "\n" not in str(error.value)


def test_no_shards(module):
    with pytest.raises(UserError, match="holds no shards"):
        module().setup("fit")
