import pickle
import time

import pytest
from PIL import Image

from zigma_pl.data.standin import draw_attributes, standin_folder, write_captions, write_standin
from zigma_pl.errors import UserError


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout_is_the_published_one(tmp_path):
    folder = write_standin(tmp_path / "mm", 10, 32)
    names = {f"images/{i}.jpg" for i in range(10)} | {f"celeba-caption/{i}.txt" for i in range(10)}
    assert set(files_of(folder)) == names | {"train/filenames.pickle", "test/filenames.pickle"}
    assert pickle.loads((folder / "train/filenames.pickle").read_bytes()) == [str(i) for i in range(8)]
    assert pickle.loads((folder / "test/filenames.pickle").read_bytes()) == ["8", "9"]
    with Image.open(folder / "images/3.jpg") as image:
        assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "JPEG")


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    builds = [files_of(write_standin(tmp_path / name / "mm", 12, 32)) for name in ("first", "second")]
    assert builds[0] == builds[1]
    assert len({builds[0][f"images/{i}.jpg"] for i in range(12)}) == 12


def test_ten_different_captions_tell_what_is_drawn():
    for image_id in range(100):
        face = draw_attributes(image_id)
        captions = write_captions(face)
        assert len(set(captions)) == 10
        assert all("\n" not in caption for caption in captions)
        text = " ".join(captions)
        assert f"{face.hair} hair" in text
        assert ("not smiling" in text) != face.smiling
        assert ("no glasses" in text) != face.glasses
        assert ("no hat" in text) != bool(face.hat)
        assert face.background in text


def test_complete_one_is_reused_and_a_damaged_one_is_reported(tmp_path):
    folder = write_standin(tmp_path / "mm", 4, 32)
    before = (folder / "images/0.jpg").stat().st_mtime_ns
    assert write_standin(tmp_path / "mm", 4, 32) == folder
    assert (folder / "images/0.jpg").stat().st_mtime_ns == before
    (folder / "images/2.jpg").unlink()
    with pytest.raises(UserError, match="remove that folder") as error:
        write_standin(tmp_path / "mm", 4, 32)
    assert str(folder) in str(error.value)


def test_real_data_are_never_touched_and_nothing_half_made_stays(tmp_path, monkeypatch):
    root = tmp_path / "mm"
    root.mkdir()
    (root / "precious.txt").write_text("real")
    assert root not in standin_folder(root, 4, 32).parents
    monkeypatch.setattr("zigma_pl.data.standin.write_captions", lambda face: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_standin(root, 4, 32)
    assert files_of(root) == {"precious.txt": b"real"}
    assert list((tmp_path / "mm-standin").iterdir()) == []


def test_of_two_processes_the_first_to_finish_wins(tmp_path, monkeypatch):
    folder = write_standin(tmp_path / "mm", 4, 32)
    before = files_of(folder)
    exists = type(folder).exists
    monkeypatch.setattr(type(folder), "exists", lambda path, **kw: path != folder and exists(path, **kw))
    assert write_standin(tmp_path / "mm", 4, 32) == folder  # drawn again, then found in place
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_two_hundred_at_64_px_take_about_a_second(tmp_path):
    start = time.perf_counter()
    write_standin(tmp_path / "mm", 200, 64)
    assert time.perf_counter() - start < 10  # 0.1 s on an idle core
