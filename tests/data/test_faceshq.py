import shutil

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.data import FacesHQ
from zigma_pl.data.images import decode_image
from zigma_pl.data.synthetic.faces import write_faceshq

CELEBA_HQ = "CelebAMask-HQ/CelebA-HQ-img"
FFHQ = "ffhq/images1024x1024"

pytestmark = pytest.mark.filterwarnings("ignore:.*scores will not compare.*")


@pytest.fixture
def root(tmp_path):
    """A small data set that counts as real: 12 CelebA-HQ faces and 28 FFHQ faces."""
    folder = tmp_path / "faceshq"
    folder.mkdir()
    write_faceshq(folder, 40, 16)
    return folder


def faces(root, **options):
    return FacesHQ(str(root), **{"image_size_px": 16, "num_workers": 0, "batch_size": 5, **options})


def numbers(split):
    """Return (is from FFHQ, id) of every picture."""
    return [("ffhq" in name, int(name.rsplit("/")[-1].split(".")[0].removeprefix("imgHQ"))) for name in split.names]


def refused(message, call):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_splits_by_id_are_disjoint_complete_and_independent_of_the_seed(root):
    data = faces(root, num_validation_images=3)
    train, test = (numbers(data.load_split(split)) for split in ("train", "test"))
    assert train == sorted(train)
    assert test == sorted(test)
    assert len(train) + len(test) == len(set(train + test)) == 40
    assert all(number < (60_000 if ffhq else 27_000) for ffhq, number in train)
    assert all(number >= (60_000 if ffhq else 27_000) for ffhq, number in test)
    validation = numbers(data.load_split("validation"))
    assert len(validation) == 3
    assert set(validation) < set(test)
    assert {ffhq for ffhq, _ in validation} == {False, True}
    assert faces(root, seed=5).load_split("test").names == data.load_split("test").names


def test_batch_is_unconditional(root):
    data = faces(root)
    assert (data.latent_shape, data.num_classes, data.caption_dim) == ((3, 16, 16), None, None)
    assert FacesHQ().image_size_px == 1024
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    assert raw.images.shape == (5, 3, 16, 16)
    assert (raw.class_ids, raw.captions) == (None, None)


def test_splits_by_the_lists_of_taming_transformers(root):
    data = faces(root, split_by="lists")
    listed = {part: (root / f"ffhq{part}.txt").read_text().split() for part in ("train", "validation")}
    assert [len(names) for names in listed.values()] == [22, 6]
    train, test = (numbers(data.load_split(split)) for split in ("train", "test"))
    assert [number for ffhq, number in test if ffhq] == [int(name[:5]) for name in listed["validation"]]
    assert len(train) + len(test) == len(set(train + test)) == 40


@pytest.mark.parametrize(
    ("celeba_hq", "ffhq"),
    [("CelebA-HQ-img", "images1024x1024"), ("celebahq", "ffhq-dataset/images1024x1024"), ("own/a", "own/b")],
)
def test_other_places(root, celeba_hq, ffhq):
    expected = numbers(faces(root).load_split("train"))
    for old, new in ((CELEBA_HQ, celeba_hq), (FFHQ, ffhq)):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)
    if celeba_hq == "own/a":
        refused("CelebA-HQ in .*data.celeba_hq_folder", lambda: faces(root).load_split("train"))
        split = faces(root, celeba_hq_folder=celeba_hq, ffhq_folder=str(root / ffhq)).load_split("train")
    else:
        split = faces(root).load_split("train")
    assert [number for _, number in numbers(split)] == [number for _, number in expected]
    assert split[len(split) - 1].image.size == (16, 16)


def test_flat_folders_and_arrays_as_in_taming_transformers(root):
    old = faces(root).load_split("train")
    ends = [old[index].image.tobytes() for index in (0, -1)]
    (root / "celebahq").mkdir()
    for path in (root / CELEBA_HQ).iterdir():
        pixels = np.asarray(decode_image(path)).transpose(2, 0, 1)[None]
        np.save(root / "celebahq" / f"imgHQ{int(path.stem):05d}.npy", pixels)
    shutil.rmtree(root / "CelebAMask-HQ")
    for path in (root / FFHQ).glob("*/*"):
        path.rename(root / "ffhq" / path.name)
    shutil.rmtree(root / FFHQ)
    new = faces(root, split_by="id").load_split("train")
    assert numbers(new) == numbers(old)
    assert {name.rsplit(".")[-1] for name in new.names} == {"npy", "png"}
    assert [new[index].image.tobytes() for index in (0, -1)] == ends


@pytest.mark.parametrize(
    "content", [np.zeros((1, 3, 4, 4)), np.zeros((4, 4, 3), np.uint8), np.array([{"a": 1}], dtype=object), None]
)
def test_array_that_is_no_picture(root, content):
    path = root / CELEBA_HQ / "imgHQ00001.npy"
    if content is None:
        path.write_bytes(b"")
    else:
        np.save(path, content)
    split = faces(root).load_split("train")
    index = next(i for i, name in enumerate(split.names) if name.endswith(".npy"))
    assert str(path) in refused("replace it", lambda: split[index])


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


def test_hostile_array_executes_nothing(root, tmp_path):
    victim = tmp_path / "victim"
    np.save(root / CELEBA_HQ / "imgHQ00001.npy", np.array([Hostile(victim)], dtype=object), allow_pickle=True)
    split = faces(root).load_split("train")
    refused("imgHQ00001.npy", lambda: split[1])
    assert not victim.exists()


def test_first_id_held_out(root):
    for source, last, first in ((CELEBA_HQ, 26_999, 27_000), (FFHQ, 59_999, 60_000)):
        used = sorted((root / source).rglob("*g"), key=lambda path: int(path.stem))
        for path, number in ((used[0], last), (used[-1], first)):
            path.rename(path.with_stem(str(number)))
    train, test = (numbers(faces(root).load_split(split)) for split in ("train", "test"))
    assert {(False, 26_999), (True, 59_999)} < set(train)
    assert {(False, 27_000), (True, 60_000)} < set(test)


def test_missing_folders(root, tmp_path):
    message = refused("nowhere", lambda: faces(tmp_path / "nowhere").setup("fit"))
    for part in (str(tmp_path / "nowhere"), f"{CELEBA_HQ}/<id>.jpg", FFHQ, "synthetic"):
        assert part in message
    shutil.rmtree(root / "ffhq")
    refused(r"FFHQ in .*\(data\.ffhq_folder\)", lambda: faces(root).setup("fit"))


def test_two_files_of_one_id_and_ids_out_of_range(root):
    shutil.copy(root / CELEBA_HQ / "0.jpg", root / CELEBA_HQ / "00000.png")
    refused(r"/0\.jpg' and '.*00000\.png' .* 0 of CelebA-HQ", lambda: faces(root).setup("fit"))
    (root / CELEBA_HQ / "00000.png").rename(root / CELEBA_HQ / "30000.jpg")
    refused("30000.jpg' .*CelebA-HQ.* 0 to 29999", lambda: faces(root).setup("fit"))


def test_half_downloaded_set_is_said(root):
    with pytest.warns(UserWarning, match="28 of the 70000 .*FFHQ"):
        faces(root).load_split("train")
    (root / CELEBA_HQ / "29999.jpg").unlink()
    (root / CELEBA_HQ / "27271.jpg").unlink()
    refused("CelebA-HQ.* ids .*27000", lambda: faces(root).setup("test"))


def test_lists_that_do_not_fit(root):
    data = faces(root, split_by="lists")
    path = root / "ffhqvalidation.txt"
    whole = path.read_text()
    path.write_text(whole + "00001.png\n")
    refused("ffhqvalidation.txt lists 1 ids .* 1:", lambda: data.setup("fit"))
    path.write_text(whole + (root / "ffhqtrain.txt").read_text().splitlines()[3] + "\n")
    refused("share 1 ids", lambda: data.setup("fit"))
    path.unlink()
    refused("cannot read the list", lambda: data.setup("fit"))


def test_truncated_picture(root):
    picture = root / CELEBA_HQ / "0.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    assert str(picture) in refused("cannot decode", lambda: faces(root).load_split("train")[0])


@pytest.mark.parametrize("num_items", [4, 10])
@pytest.mark.filterwarnings("error")
def test_synthetic_data_have_both_sets_in_all_splits_without_warnings(tmp_path, num_items):
    data = faces(tmp_path / "f", synthetic=True, num_synthetic_items=num_items, ffhq_folder="elsewhere")
    for split in ("train", "validation", "test"):
        assert {ffhq for ffhq, _ in numbers(data.load_split(split))} == {False, True}
    assert len(data.load_split("train")) + len(data.load_split("test")) == num_items
    assert not (tmp_path / "f").exists()
    with pytest.raises(UserError, match=r"num_synthetic_items: .* from 4"):
        faces(tmp_path / "f", synthetic=True, num_synthetic_items=3)
