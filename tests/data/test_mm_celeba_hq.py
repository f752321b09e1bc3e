import gc
import shutil
import time
import warnings

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.data import MMCelebAHQ
from zigma_pl.data.images import decode_image
from zigma_pl.data.synthetic.faces import draw_attributes, write_captions, write_mm_celeba_hq


@pytest.fixture
def root(tmp_path):
    """A small data set that counts as real."""
    folder = tmp_path / "mm"
    folder.mkdir()
    write_mm_celeba_hq(folder, 20, 32)
    return folder


def faces(root, **options):
    return MMCelebAHQ(str(root), **{"image_size_px": 32, "num_workers": 0, "batch_size": 5, **options})


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_splits_and_items(root):
    data = faces(root, num_validation_images=3)
    assert {split: data.load_split(split).image_ids for split in ("train", "validation", "test")} == {
        "train": list(range(16)),
        "validation": [16, 17, 18],
        "test": [16, 17, 18, 19],
    }
    item = data.load_split("test")[1]
    assert item.captions == write_captions(draw_attributes(17))
    assert item.image.tobytes() == decode_image(root / "images" / "17.jpg").tobytes()


def test_batch_of_pixels_and_captions(root):
    data = faces(root, caption_dim=16, max_caption_tokens=12)
    assert (data.latent_shape, data.caption_dim, data.num_classes) == ((3, 32, 32), 16, None)
    data.setup("test")
    raw = next(iter(data.test_dataloader()))
    assert raw.sample_ids.tolist() == [0, 1, 2, 3]
    batch = data.on_after_batch_transfer(raw, 0)
    features, mask = batch.conditions["caption"]
    assert (batch.latents.shape, features.shape, mask.shape) == (
        (4, 3, 32, 32),
        (4, 12, 16),
        (4, 12),
    )
    for index, caption in enumerate(raw.captions):
        assert caption in write_captions(draw_attributes(16 + index))


@pytest.mark.parametrize("image_folder", ["image/images", "image", "CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img"])
def test_other_published_folder_names(root, image_folder):
    (root / image_folder).parent.mkdir(exist_ok=True, parents=True)
    (root / "images").rename(root / image_folder)
    (root / "text").mkdir()
    (root / "celeba-caption").rename(root / "text/celeba-caption")
    split = faces(root).load_split("train")
    assert len(split) == 16
    assert split[0].image.size == (32, 32)
    assert len(split[0].captions) == 10


def test_missing_folder_error_gives_folder_layout_and_synthetic_option(tmp_path):
    with pytest.raises(UserError) as error:
        faces(tmp_path / "nowhere").setup("fit")
    message = one_line(error)
    for part in (
        str(tmp_path / "nowhere"),
        "images/<id>.jpg",
        "celeba-caption/<id>.txt",
        "filenames.pickle",
        "synthetic",
    ):
        assert part in message


@pytest.mark.parametrize(("emptied", "named"), [("images", "<id>.jpg"), ("celeba-caption", "<id>.txt")])
def test_empty_folder_is_named(root, emptied, named):
    shutil.rmtree(root / emptied)
    (root / emptied).mkdir()
    with pytest.raises(UserError) as error:
        faces(root).setup("fit")
    assert str(root) in one_line(error)
    assert named in str(error.value)


@pytest.mark.parametrize("file", ["images/4.jpg", "celeba-caption/4.txt"])
def test_listed_picture_or_caption_that_is_not_there(root, file):
    (root / file).unlink()
    data = faces(root)
    with pytest.raises(UserError, match="1 of the 16 ids of 'train', such as 4"):
        data.setup("fit")
    data.setup("test")  # the other split is whole, and only that one is asked for


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image_is_one_line_also_out_of_a_worker(root, num_workers):
    path = root / "images/17.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    data = faces(root, num_workers=num_workers)
    data.setup("test")
    loader = data.test_dataloader()
    with pytest.raises(UserError, match=r"^cannot decode the image .*17\.jpg .*replace it") as error:
        list(loader)
    one_line(error)
    start = time.perf_counter()
    del error
    gc.collect()
    assert time.perf_counter() - start < 4  # the workers are gone already; PyTorch would wait 5 s for them
    path.write_bytes(whole)
    assert len(list(loader)) == 1


def test_caption_lines(root):
    path = root / "celeba-caption/16.txt"
    path.write_text("\n first caption \r\n\n\nsecond\n   \n")
    data = faces(root)
    assert data.load_split("test")[0].captions == ["first caption", "second"]
    for content in (b"", b"\n  \n", b"\xff\xfe\xfa"):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            data.load_split("test")[0]
        assert str(path) in one_line(error)


def test_swapped_lists_are_said_once(root):
    (root / "train").rename(root / "other")
    (root / "test").rename(root / "train")
    (root / "other").rename(root / "test")
    data = faces(root)
    with pytest.warns(UserWarning, match="swapped") as caught:
        data.setup("fit")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("test")
    assert len(data.load_split("train")) == 16


def test_synthetic_data_leave_root_alone(tmp_path):
    root = tmp_path / "mm"
    data = faces(root, synthetic=True, num_synthetic_items=10)
    data.setup("fit")
    assert not root.exists()
    assert [len(data.load_split(split)) for split in ("train", "validation", "test")] == [8, 2, 2]
    assert next(iter(data.train_dataloader())).images.shape == (5, 3, 32, 32)
    with pytest.raises(UserError, match="num_synthetic_items"):
        faces(root, synthetic=True, num_synthetic_items=1)


def test_predict_needs_no_folder_and_cycles_captions(tmp_path):
    data = faces(tmp_path / "nowhere", predict_captions=["red hair", "a hat"], num_predict_samples=7)
    data.setup("predict")
    raws = list(data.predict_dataloader())
    assert [caption for raw in raws for caption in raw.captions] == ["red hair", "a hat"] * 3 + ["red hair"]
    batch = data.on_after_batch_transfer(raws[0], 0)
    assert batch.latents is None
    previewed = data.conditions(range(5))
    for found, expected in zip(previewed.conditions["caption"], batch.conditions["caption"], strict=True):
        assert torch.equal(found, expected)
    assert previewed.sample_ids.tolist() == list(range(5))
    with pytest.raises(UserError, match="predict_captions"):
        faces(tmp_path, predict_captions=[])


def test_without_condition_there_are_no_captions(root):
    data = faces(root, condition="none")
    assert (data.has_captions, data.caption_dim, data.text_encoder) == (False, None, None)
    assert data.load_split("train")[0].captions is None
    assert data.described() != faces(root).described()
