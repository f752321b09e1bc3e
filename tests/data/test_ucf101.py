import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from data.written_videos import decoded
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.data import UCF101
from zigma_pl.data.images import resize_and_crop
from zigma_pl.data.synthetic.clips import MOTIONS, write_ucf101

LISTS = "ucfTrainTestlist"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_ucf101(folder, 30, 16, 6)
    return folder


@pytest.fixture
def root(drawn, tmp_path):
    """A small data set that counts as real: six videos of each class, two of them in each of the groups 1, 9 and 17."""
    return shutil.copytree(drawn, tmp_path / "ucf")


def ucf101(root, **options):
    return UCF101(str(root), **{"image_size_px": 16, "num_frames": 4, "num_workers": 0, "batch_size": 5, **options})


def names(data, split):
    return [f"{item.path.parent.name}/{item.path.name}" for item in data.load_split(split)]


def groups(data, split):
    return {int(name[-10:-8]) for name in names(data, split)}


def refused(data, split="train"):
    with pytest.raises(UserError) as error:
        data.load_split(split)
    message = str(error.value)
    assert "\n" not in message
    return message


def edit(path, old, new):
    content = path.read_bytes().decode()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode())


def test_splits_are_those_of_the_fold(root):
    for fold, group in ((1, 1), (2, 9), (3, 17)):
        data = ucf101(root, fold=fold)
        assert groups(data, "test") == groups(data, "validation") == {group}
        assert groups(data, "train") == {1, 9, 17} - {group}
        lines = (root / LISTS / f"trainlist0{fold}.txt").read_text().split()
        assert names(data, "train") == lines[::2]
        assert [str(item.class_id + 1) for item in data.load_split("train")] == lines[1::2]


def test_validation_is_the_first_groups_of_the_test_list(tmp_path):
    write_ucf101(tmp_path, 250, 8, 1)  # two videos of each class in each of the 25 groups
    all_groups = {split: groups(ucf101(tmp_path, num_validation_groups=2), split) for split in ("train", "validation")}
    assert all_groups == {"train": set(range(8, 26)), "validation": {1, 2}}
    data = ucf101(tmp_path, fold=2)
    assert groups(data, "validation") == {8}
    assert len(data.load_split("validation")) == 10
    assert groups(data, "test") == set(range(8, 15))
    assert groups(ucf101(tmp_path, num_validation_groups=99), "validation") == set(range(1, 8))


def test_batch(root):
    data = ucf101(root)
    assert (data.latent_shape, data.num_classes, data.num_frames) == ((4, 3, 16, 16), 5, 4)
    data.setup("fit")
    raw = next(iter(data.val_dataloader()))
    assert raw.images.shape == (5, 4, 3, 16, 16)
    assert raw.class_ids.tolist() == [0, 0, 1, 1, 2]
    path = data.load_split("validation")[2].path
    frames = decoded(path)
    middle = (len(frames) - 4 + 1) // 2
    for shown, frame in zip(raw.images[2], frames[middle : middle + 4], strict=True):
        expected = np.asarray(resize_and_crop(Image.fromarray(frame), 16))
        assert np.array_equal(shown.permute(1, 2, 0), expected)


def test_unconditional(root):
    data = ucf101(root, condition="none")
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    assert (data.num_classes, raw.class_ids) == (None, None)
    assert data.on_after_batch_transfer(raw, 0).conditions == {}
    assert data.conditions(range(3)).conditions == {}
    assert data.described()["condition"] == "none"
    with pytest.raises(UserError, match=r"data\.num_classes needs data\.condition 'class'"):
        ucf101(root, condition="none", num_classes=5)


@pytest.mark.parametrize(("videos", "lists"), [("videos", "."), (".", LISTS), (".", ".")])
def test_other_places_under_root(root, videos, lists):
    expected = names(ucf101(root), "train")
    for name, place in (("UCF-101", videos), (LISTS, lists)):
        moved = sorted((root / name).iterdir())
        (root / place).mkdir(exist_ok=True)
        for path in moved:
            path.rename(root / place / path.name)
    data = ucf101(root)
    assert names(data, "train") == expected
    assert data.num_classes == 5
    assert data.pixel_items("train")[0].pixels.shape == (4, 3, 16, 16)


def test_the_folder_tells_the_class(root):
    """In the real set, HandstandPushups contains files that are called v_HandStandPushups_gXX_cYY.avi."""
    folder = root / "UCF-101/RotatingBar"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("RotatingBar", "ROTATINGBar"))
    for path in (root / LISTS).glob("*list*.txt"):
        path.write_text(path.read_text().replace("v_RotatingBar", "v_ROTATINGBar"))
    items = ucf101(root).load_split("train")
    assert {item.class_id for item in items if "ROTATING" in item.path.name} == {2}


def test_predict_needs_no_folder(tmp_path):
    data = ucf101(tmp_path / "nowhere", num_predict_samples=102)
    data.setup("predict")
    class_ids = [class_id for raw in data.predict_dataloader() for class_id in raw.class_ids.tolist()]
    assert class_ids == [*range(101), 0]
    assert data.conditions([3, 4]).conditions["class"].values.tolist() == [3, 4]
    assert ucf101(tmp_path / "nowhere", num_classes=7).num_classes == 7
    assert ucf101(tmp_path / "nowhere", synthetic=True).num_classes == len(MOTIONS)


def test_synthetic_data_leave_root_alone(tmp_path):
    data = ucf101(tmp_path / "ucf", synthetic=True, num_synthetic_items=15, frame_stride=12)
    data.setup("fit")
    assert not (tmp_path / "ucf").exists()
    assert [len(data.load_split(split)) for split in ("train", "validation", "test")] == [10, 5, 5]
    assert next(iter(data.train_dataloader())).images.shape == (5, 4, 3, 16, 16)
    assert [path.name for path in (tmp_path / "ucf-synthetic").iterdir()] == ["v1-15x16px-37frames"]
    with pytest.raises(UserError, match=r"num_synthetic_items: .* from 15"):
        ucf101(tmp_path, synthetic=True, num_synthetic_items=14)


def test_missing_folder_error_gives_folder_layout_and_synthetic_option(tmp_path):
    message = refused(ucf101(tmp_path / "nowhere"))
    parts = (str(tmp_path / "nowhere"), "UCF-101/<Class>/v_<Class>_g01_c01.avi", "classInd.txt", "trainlist01.txt")
    assert all(part in message for part in (*parts, "synthetic"))


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist02.txt", "testlist02.txt"])
def test_missing_lists_are_named(root, name):
    (root / LISTS / name).unlink()
    message = refused(ucf101(root, fold=2))
    assert f"'{root}' has no {name}" in message
    if name != "classInd.txt":
        assert len(ucf101(root).load_split("train")) == 20  # the other folds are whole


def test_a_listed_video_that_is_not_there(root):
    (root / "UCF-101/SlidingSquare/v_SlidingSquare_g09_c02.avi").unlink()
    message = refused(ucf101(root))
    assert "1 of the 20 videos listed for 'train'" in message
    assert "such as SlidingSquare/v_SlidingSquare_g09_c02.avi" in message
    assert len(ucf101(root).load_split("test")) == 10


def test_class_names_and_folders_at_odds(root):
    folder = root / "UCF-101"
    (folder / "RotatingBar").rename(folder / "Rotating")
    assert "1 classes without a folder" in refused(ucf101(root))
    (folder / "RotatingBar").mkdir()
    assert "Rotating is not in classInd.txt" in refused(ucf101(root))
    (folder / "Rotating").rename(root / "elsewhere")
    (folder / "notes").mkdir()
    assert "10 of the 20" not in refused(ucf101(root))
    assert "4 of the 20 videos" in refused(ucf101(root))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("2 PulsingTriangle", "3 PulsingTriangle", "'3 PulsingTriangle' should be 2"),
        ("2 PulsingTriangle", "2 BouncingBall", "'2 BouncingBall' should be 1, or its class is listed twice"),
        ("2 PulsingTriangle", "PulsingTriangle", "expected lines such as '1 ApplyEyeMakeup', found 'PulsingTriangle'"),
        ("2 PulsingTriangle", "2 ../Pulsing", "expected lines such as"),
    ],
)
def test_damaged_class_names(root, old, new, says):
    edit(root / LISTS / "classInd.txt", old, new)
    message = refused(ucf101(root))
    assert says in message
    assert "classInd.txt" in message


@pytest.mark.parametrize(
    ("name", "new", "says"),
    [
        ("train", "BouncingBall/v_BouncingBall_g09_c01.avi 2", "classInd.txt has number 1"),
        ("train", "Bouncing/v_BouncingBall_g09_c01.avi 1", "classInd.txt does not have this class"),
        ("train", "BouncingBall/../../v_BouncingBall_g09_c01.avi 1", "expected lines such as"),
        ("train", "/BouncingBall/v_BouncingBall_g09_c01.avi 1", "expected lines such as"),
        ("train", "BouncingBall/v_BouncingBall_g01_c01.avi 1", "share 1 groups, such as BouncingBall g01"),
    ],
)
def test_damaged_lists(root, name, new, says):
    path = root / LISTS / f"{name}list01.txt"
    edit(path, "BouncingBall/v_BouncingBall_g09_c01.avi 1", new)
    message = refused(ucf101(root))
    assert says in message
    assert str(path) in message


@pytest.mark.parametrize("content", [b"", b"\r\n \r\n", b"\xff\xfe"])
def test_empty_or_undecodable_files(root, content):
    for name in ("testlist01.txt", "classInd.txt"):
        path = root / LISTS / name
        path.write_bytes(content)
        assert str(path) in refused(ucf101(root))


def test_number_of_classes_that_is_not_the_data_sets(root):
    assert "data.num_classes is 101, but classInd.txt" in refused(ucf101(root, num_classes=101))
    assert ucf101(root, num_classes=5).load_split("train")


REAL = {"bigbuckbunny.mp4": 132, "bikes.mp4": 250, "carphone_pristine.mp4": 120}  # frames of each


def test_sixteen_frames_of_real_videos(tmp_path):
    """The clips of absolutely-not-scikit-video (H.264 with and without B-frames), laid out as UCF101."""
    spec = find_spec("skvideo")  # only to find its files: importing it needs old versions of other packages
    assert spec is not None, 'pip install -e ".[dev]"'
    source = Path(spec.submodule_search_locations[0]) / "datasets/data"
    lists = {"classInd.txt": [], "trainlist01.txt": [], "testlist01.txt": []}
    for number, name in enumerate(REAL, 1):
        class_name = name.split("_")[0].split(".")[0].capitalize()
        (tmp_path / "UCF-101" / class_name).mkdir(parents=True)
        lists["classInd.txt"].append(f"{number} {class_name}")
        for split, group, label in (("test", 1, ""), ("train", 8, f" {number}")):
            video = f"{class_name}/v_{class_name}_g{group:02}_c01.avi"
            (tmp_path / "UCF-101" / video).symlink_to(source / name)
            lists[f"{split}list01.txt"].append(f"{video}{label}")
    for name, lines in lists.items():
        (tmp_path / name).write_text("\n".join(lines))
    data = ucf101(tmp_path, num_frames=16, frame_stride=2, image_size_px=64, batch_size=3)
    data.setup("fit")
    raw = next(iter(data.val_dataloader()))
    assert raw.images.shape == (3, 16, 3, 64, 64)
    for index, (name, num_frames) in enumerate(REAL.items()):
        start = (num_frames - 31 + 1) // 2
        for shown, frame in zip(raw.images[index], decoded(source / name, start, start + 31, 2), strict=True):
            expected = np.asarray(resize_and_crop(Image.fromarray(frame), 64))
            assert np.array_equal(shown.permute(1, 2, 0), expected)
    trained = next(iter(data.train_dataloader())).images
    assert trained.shape == (3, 16, 3, 64, 64)
    assert (trained.float().diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) > 0.5).all()  # it moves
