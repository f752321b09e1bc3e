"""COCO's layout. Kind: errors that say something else than what is wrong."""

import json

import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.data import COCO
from zigma_pl.data.synthetic.scenes import draw_scene_attributes, write_coco, write_scene_captions


@pytest.fixture(params=[2014, 2017])
def root(request, tmp_path):
    """A small data set that counts as real; in both releases, one at a time."""
    folder = tmp_path / "coco"
    folder.mkdir()
    write_coco(folder, 20, 24, request.param)
    return folder


def coco(root, **options):
    year = 2014 if (root / "train2014").exists() or (root / "images/train2014").exists() else 2017
    return COCO(str(root), **{"year": year, "image_size_px": 24, "num_workers": 0, "batch_size": 5, **options})


def rewrite(root, part, change):
    (path,) = (root / "annotations").glob(f"captions_{part}*.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def refused(message, call):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_splits_are_in_the_order_of_ids_with_cleaned_captions(root):
    data = coco(root, num_validation_images=2)
    train, test = data.load_split("train"), data.load_split("test")
    assert [name[-7:] for name in train.names] == [f"{9 + 16 * i:03d}.jpg" for i in range(16)]
    assert [name[-7:] for name in test.names] == ["042.jpg", "058.jpg", "074.jpg", "090.jpg"]
    assert data.load_split("validation").names == [test.names[0], test.names[2]]
    assert data.load_split("validation").captions == [test.captions[0], test.captions[2]]
    told = write_scene_captions(draw_scene_attributes(9))
    assert train[0].captions == told  # its line break is a blank again
    assert train[15].captions == write_scene_captions(draw_scene_attributes(9 + 16 * 15))[:4]  # the fifth was empty
    assert all(len(captions) == 5 for captions in train.captions[:15])
    assert train[3].image.mode == "RGB"  # a grey one
    assert train[0].image.width != train[0].image.height


def test_pictures_are_cut_to_size(root):
    data = coco(root, caption_dim=8)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    assert raw.images.shape == (5, 3, 24, 24)
    assert all("\n" not in caption and caption for caption in raw.captions)


def test_pictures_below_images(root):
    (root / "images").mkdir()
    for folder in list(root.glob("*20*")):
        folder.rename(root / "images" / folder.name)
    assert len(coco(root).load_split("test")) == 4


def test_missing_folder_annotations_and_pictures(root, tmp_path):
    message = refused("nowhere", lambda: COCO(str(tmp_path / "nowhere"), year=2017).setup("fit"))
    for part in (str(tmp_path / "nowhere"), "train2017", "captions_val2017.json", "synthetic"):
        assert part in message
    data = coco(root)
    picture = next(root.glob("val20*/*042.jpg"))
    picture.unlink()
    message = refused(r"1 of the 4 .* val20.*zip", lambda: data.setup("test"))
    assert picture.name in message
    picture.parent.rename(root / "gone")
    refused("image folder .*val20", lambda: data.setup("test"))
    next((root / "annotations").glob("captions_val*")).unlink()
    refused("caption file .*captions_val20.*json'", lambda: data.setup("test"))


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe"])
def test_broken_annotations(root, content):
    path = next((root / "annotations").glob("captions_train*"))
    path.write_bytes(content)
    assert str(path) in refused("not a valid COCO caption file", lambda: coco(root).setup("fit"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annotations"), "not a valid COCO caption file"),
        (lambda content: content["annotations"][0].pop("caption"), "not a valid COCO caption file"),
        (lambda content: content["annotations"][0].update(caption=None), "not a valid COCO caption file"),
        (lambda content: content["annotations"][0].update(image_id=5), "caption for image 5"),
        (lambda content: content["annotations"][0].update(image_id="5"), "not a valid COCO caption file"),
        (lambda content: content["images"][0].update(id=10**4000), "not a valid COCO caption file"),
        (lambda content: content["images"][0].update(file_name=["a.jpg"]), "not a valid COCO caption file"),
        (lambda content: content.update(images=[], annotations=[]), "lists no images"),
        (lambda content: content["images"].append(content["images"][0]), "lists an image twice"),
        (lambda content: content["images"][0].update(file_name="../../x.jpg"), "'../../x.jpg'"),
        (lambda content: content["images"][0].update(file_name="/x.jpg"), "'/x.jpg'"),
    ],
)
def test_annotations_that_are_something_else(root, change, message):
    path = rewrite(root, "train", change)
    assert str(path) in refused(message, lambda: coco(root).setup("fit"))


def test_picture_without_a_caption_is_named(root):
    def empty(content):
        for annotation in content["annotations"]:
            if annotation["image_id"] == 42:
                annotation["caption"] = " \n"

    rewrite(root, "val", empty)
    assert "image 42 (" in refused("captions_val", lambda: coco(root).setup("test"))


@pytest.mark.parametrize("num_bytes", [0, 300])
def test_truncated_picture(root, num_bytes):
    picture = next(root.glob("val20*/*042.jpg"))
    picture.write_bytes(picture.read_bytes()[:num_bytes])
    data = coco(root)
    data.setup("test")
    assert str(picture) in refused("cannot decode .* replace it", lambda: list(data.test_dataloader()))


def test_synthetic_data_of_both_releases_have_their_own_folders(tmp_path):
    root = tmp_path / "coco"
    for year in (2014, 2017):
        data = COCO(str(root), year=year, synthetic=True, num_synthetic_items=10, image_size_px=16)
        data.setup("fit")
        assert (data.folder / f"train{year}").is_dir()
    assert not root.exists()
    assert len(list((tmp_path / "coco-synthetic").iterdir())) == 2


def test_predict_needs_no_folder(tmp_path):
    data = COCO(str(tmp_path / "nowhere"), num_predict_samples=3, predict_captions=["a cat", "a dog"])
    data.setup("predict")
    assert next(iter(data.predict_dataloader())).captions == ["a cat", "a dog", "a cat"]
    with pytest.raises(UserError, match=r"nowhere.*predict_captions"):
        COCO(str(tmp_path / "nowhere")).predict_dataloader()
    with pytest.raises(UserError, match="num_validation_images"):
        COCO(str(tmp_path), num_validation_images=0)
