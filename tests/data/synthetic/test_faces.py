import pickle
import time

from PIL import Image

from zigma_pl.data.synthetic.faces import draw_attributes, write_captions, write_faceshq, write_mm_celeba_hq


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


def test_faceshq_is_laid_out_as_it_is_unpacked(tmp_path):
    builds = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_faceshq(tmp_path / name, 10, 16)
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        builds.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in paths})
    assert builds[0] == builds[1]
    celeba_hq = {f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg" for i in (0, 14999, 29999)}
    ffhq = {
        f"ffhq/images1024x1024/{i // 1000:02d}000/{i:05d}.png" for i in (0, 11666, 23333, 34999, 46666, 58332, 69999)
    }
    lists = {f"{name}{part}.txt" for name in ("celebahq", "ffhq") for part in ("train", "validation")}
    assert set(builds[0]) == celeba_hq | ffhq | lists
    assert builds[0]["celebahqtrain.txt"] == b"imgHQ14999.npy\nimgHQ29999.npy\n"
    assert builds[0]["ffhqvalidation.txt"] == b"00000.png\n58332.png\n"
    assert len({content for name, content in builds[0].items() if name.endswith("g")}) == 10
