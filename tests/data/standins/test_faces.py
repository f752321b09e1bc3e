import pickle
import time

from PIL import Image

from zigma_pl.data.standins.faces import draw_attributes, write_captions, write_mm_celeba_hq


def written(folder, *arguments):
    folder.mkdir(parents=True)
    write_mm_celeba_hq(folder, *arguments)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout_is_the_published_one(tmp_path):
    files = written(tmp_path / "mm", 10, 32)
    names = {f"images/{i}.jpg" for i in range(10)} | {f"celeba-caption/{i}.txt" for i in range(10)}
    assert set(files) == names | {"train/filenames.pickle", "test/filenames.pickle"}
    assert pickle.loads(files["train/filenames.pickle"]) == [str(i) for i in range(8)]
    assert pickle.loads(files["test/filenames.pickle"]) == ["8", "9"]
    with Image.open(tmp_path / "mm/images/3.jpg") as image:
        assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "JPEG")


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    builds = [written(tmp_path / name, 12, 32) for name in ("first", "second")]
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


def test_two_hundred_at_64_px_take_about_a_second(tmp_path):
    start = time.perf_counter()
    written(tmp_path / "mm", 200, 64)
    assert time.perf_counter() - start < 10  # 0.1 s on an idle core
