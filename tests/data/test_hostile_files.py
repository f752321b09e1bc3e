"""Kind: files that are not what their names say. Each is one line, at once, and opens nothing else."""

import ast
import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zigma_pl
from zigma_pl.core.errors import UserError
from zigma_pl.core.records import read_record
from zigma_pl.data.cache.arrays import map_array
from zigma_pl.data.cache.manifest import Manifest, read_manifest
from zigma_pl.data.images import MAX_RESIZED_RATIO, decode_image, resize_and_crop
from zigma_pl.data.npy import map_npy
from zigma_pl.data.picture_files import find_pictures
from zigma_pl.data.sources.caption_files import read_captions
from zigma_pl.data.sources.coco import read_annotations
from zigma_pl.data.sources.faceshq import read_array
from zigma_pl.data.sources.mm_celeba_hq import read_caption_file
from zigma_pl.data.sources.split_lists import read_filename_list, read_number_list
from zigma_pl.data.sources.ucf101 import read_class_names
from zigma_pl.data.video_files import open_video


def open_and_close(path):
    with open_video(path):
        pass


READERS = [
    decode_image, read_array, read_captions, read_annotations, read_caption_file, map_array, read_filename_list,
    read_number_list, read_class_names, open_and_close, lambda path: read_record(Manifest, path),
]  # fmt: skip


def refused(reader, path):
    """Check that a file is refused in one line that names it, within a second."""
    started = time.perf_counter()
    with pytest.raises(UserError) as error:
        reader(path)
    assert time.perf_counter() - started < 1
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to a fifo", "link to itself"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, reader, kind):
    path = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to("/dev/zero" if kind == "device" else "fifo")
    refused(reader, path)


def test_a_fifo_in_the_place_of_a_manifest(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


# --- finding pictures -------------------------------------------------------------------------------------------------


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_special_files_are_not_found(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").symlink_to("gone.png")
    assert find_pictures(tmp_path) == ["a.png", "d.png"]  # a link that leads nowhere is said when it is opened


def test_every_file_is_found_once_though_folders_link_to_each_other(tmp_path):
    touch(tmp_path, "train/1.png", "train/2.png", "test/3.png")
    (tmp_path / "test/all").symlink_to(tmp_path)
    (tmp_path / "train/again").symlink_to(".")
    (tmp_path / "a_link").symlink_to("train")
    assert find_pictures(tmp_path) == ["test/3.png", "train/1.png", "train/2.png"]


def test_of_several_names_that_without_a_link_is_kept_then_the_first(tmp_path):
    touch(tmp_path, "z/1.png", "2.png")
    (tmp_path / "a.png").symlink_to("z/1.png")
    os.link(tmp_path / "2.png", tmp_path / "z/hard.png")
    assert find_pictures(tmp_path) == ["2.png", "z/1.png"]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_no_picture_is_opened_in_a_format_that_is_not_named():
    """Pillow would hand an EPS file under any name to Ghostscript."""
    package = Path(zigma_pl.__file__).parent
    for path in package.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            if ast.unparse(call.func).endswith("Image.open"):
                assert "formats" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "PPM", "PDF", "ICO"])
def test_other_formats_under_a_known_name_are_refused(tmp_path, kind, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path, format=kind)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    assert "JPEG, PNG, WEBP, BMP" in refused(decode_image, path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_content_and_not_the_name_tells_the_format(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", format=kind)
    assert decode_image(tmp_path / "x.jpg").size == (8, 8)


def png(width, height, data):
    """Return a grey PNG of any claimed size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "x.png").write_bytes(png(side, side, zlib.compress(bytes(1000))))
    refused(decode_image, tmp_path / "x.png")


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
def test_of_an_extreme_shape_only_the_part_that_stays_is_resized(tmp_path, size, monkeypatch):
    """Kind: sizes in a file that are allocated before they are checked.

    2 KB would become 256 x 256,000,000 pixels if all of it were resized.
    """
    Image.new("L", size, 77).save(tmp_path / "x.png")
    resize = Image.Image.resize

    def watched(image, new_size, *arguments, **options):
        assert new_size[0] * new_size[1] <= MAX_RESIZED_RATIO * 256**2
        return resize(image, new_size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    square = resize_and_crop(decode_image(tmp_path / "x.png"), 256)
    assert np.array_equal(np.asarray(square), np.full((256, 256, 3), 77))


@pytest.mark.parametrize("size", [(50, 300), (300, 50), (41, 401), (1001, 90)])
def test_the_part_alone_is_what_resizing_all_of_it_gives(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    shorter = min(size)
    all_of_it = image.resize([round(side * 32 / shorter) for side in size], Image.Resampling.BICUBIC)
    left, top = (all_of_it.width - 32) // 2, (all_of_it.height - 32) // 2
    expected = np.asarray(all_of_it.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(np.asarray(resize_and_crop(image, 32)) - expected).max() <= 1


# --- arrays -----------------------------------------------------------------------------------------------------------


def npy(header):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("reader", [read_array, map_array])
@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 1000000, 1000000)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4)}") + bytes(4),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + bytes(8),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': 'x'}"),
        npy("[" * 100),
        npy("x + 1"),
        b"\x93NUMPY\x02\x00",
        b"",
    ],
)
def test_headers_that_promise_something_else(tmp_path, reader, content):
    (tmp_path / "x.npy").write_bytes(content)
    refused(reader, tmp_path / "x.npy")


def test_an_archive_under_the_name_of_an_array(tmp_path):
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(10))
    (tmp_path / "x.npy").write_bytes(stream.getvalue())
    refused(read_array, tmp_path / "x.npy")


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_both_orders_are_mapped(tmp_path, order):
    array = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)
    np.save(tmp_path / "x.npy", array)
    assert np.array_equal(map_npy(tmp_path / "x.npy"), array)


# --- lists and videos -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04]r\xff\xff\xff\x7f.",  # a place in the memo for which 16 GB would be allocated
        b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.",  # a bytearray of 4 GB
        b"\x80\x04](X\x05\x00\x00\x00aaaaa2e.",  # DUP
        b"(" * 100_000,
        b"I" + b"1" * 5000 + b"\n.",
        b"\x80\x04]X\x10\x27\x00\x00" + b"1" * 10_000 + b"a.",  # an id of 10,000 digits
    ],
)
def test_a_pickle_that_needs_more_than_lists_of_strings_do(tmp_path, content):
    (tmp_path / "filenames.pickle").write_bytes(content)
    refused(read_filename_list, tmp_path / "filenames.pickle")


@pytest.mark.parametrize("reader", [read_number_list, read_class_names])
def test_numbers_of_many_digits(tmp_path, reader):
    (tmp_path / "list.txt").write_text("1" * 5000 + ".png\n" + "1" * 5000 + " Yoga\n")
    refused(reader, tmp_path / "list.txt")


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{other}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["playlist", "concat", "session"],
)
def test_a_playlist_under_the_name_of_a_video_opens_nothing_else(tmp_path, content):
    pytest.importorskip("av")
    from data.written_videos import write

    other = write(tmp_path / "other.avi", np.zeros((4, 32, 32, 3), dtype=np.uint8))
    (tmp_path / "v.avi").write_text(content.format(other=other))
    refused(open_and_close, tmp_path / "v.avi")
