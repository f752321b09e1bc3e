"""Kind: malformed files. Whatever the bytes, a file gives a result or one line, within 5 s and 1 GB.

The examples are the same in every run: hypothesis derives them from the test itself.
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.data.cache.folder import finished_shards
from zigma_pl.data.cache.manifest import read_manifest
from zigma_pl.data.cache.reading import open_split
from zigma_pl.data.images import decode_image, resize_and_crop
from zigma_pl.data.preparation.check import check_files
from zigma_pl.data.sources.caption_files import read_captions
from zigma_pl.data.sources.coco import read_annotations
from zigma_pl.data.sources.mm_celeba_hq import read_caption_file
from zigma_pl.data.sources.split_lists import read_filename_list, read_number_list
from zigma_pl.data.sources.ucf101 import read_class_names, read_list

STORED = Path(__file__).parent / "prepared" / "stored"
FUZZ = bounded(max_examples=60)
pytestmark = pytest.mark.usefixtures("one_gigabyte_more")


def gives_a_result_or_one_line(read):
    try:
        read()
        return
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    message.encode()  # it can be printed


@pytest.fixture
def stored(tmp_path):
    """A copy of the stored set."""
    return Path(shutil.copytree(STORED, tmp_path / "set"))


# --- what goes wrong in files -----------------------------------------------------------------------------------------

RAW = [  # as text: Python would not write most of them
    *("null", "true", "-1", "0", "1e400", "-0.5", "1" * 5000, "1e12", "1000000000000", "NaN", '""', "[]", "{}"),
    *('"../x"', '"/etc/passwd"', r'"\ud800"', r'"a\u0000b"', r'"a\nb"', '"%s"' % ("x" * 3000), '"Käse"'),
    *("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '["a"]', '{"file_name": "1.png"}'),
]


@st.composite
def damaged_json(draw, valid):
    """Return the text of a JSON value with something else at one or two places, or without them."""
    value = json.loads(valid)
    raw = {}
    for number in range(draw(st.integers(1, 2))):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
            elif draw(st.integers(0, 4)) == 0:
                del place[key]
                break
            else:
                mark = f"@{number}@"
                raw[f'"{mark}"'] = draw(st.sampled_from(RAW))
                place[key] = mark
                break
    text = json.dumps(value)
    for mark, replacement in raw.items():
        text = text.replace(mark, replacement)
    return text.encode()


@st.composite
def damaged_bytes(draw, valid):
    """Return a file's bytes with some of them changed, gone or added, or cut off."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            content[start : start + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        elif draw(st.integers(0, 3)) == 0:
            del content[start:]
    return bytes(content)


def damaged(valid):
    return st.one_of(st.binary(max_size=200), damaged_bytes(valid), damaged_json(valid))


CAPTIONS = [
    b'{"file_name": "cats/1.png", "caption": "A cat"}',
    b'{"file_name": "2.png", "captions": ["A dog", "K\\u00e4se"], "more": [1]}',
]
ANNOTATIONS = json.dumps(
    {
        "info": {"year": 2014},
        "images": [{"id": 1, "file_name": "1.jpg", "width": 3}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 1, "id": 1, "caption": "One"}, {"image_id": 2, "id": 2, "caption": "Two\n"}],
    }
).encode()
NAMES = b"1.png\nimgHQ00002.npy\n"


# --- JSON -------------------------------------------------------------------------------------------------------------


@FUZZ
@given(content=st.one_of(damaged(CAPTIONS[0]), st.lists(damaged_json(CAPTIONS[1]), max_size=3)))
def test_captions(tmp_path, content):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else b"\n".join(content))
    gives_a_result_or_one_line(lambda: read_captions(path))


@FUZZ
@given(content=damaged(ANNOTATIONS))
def test_coco_annotations(tmp_path, content):
    path = tmp_path / "captions_train2014.json"
    path.write_bytes(content)
    gives_a_result_or_one_line(lambda: read_annotations(path))


def read_all(folder):
    manifest = read_manifest(folder)
    assert len(list(check_files(folder, manifest))) == sum(len(shard.files) for _, shard in manifest.shards)
    for split in manifest.splits:
        samples = open_split(folder, manifest, split, seed=0, horizontal_flip=True, max_caption_tokens=3)
        samples.__getitems__([(number, number) for number in range(min(4, len(samples)))])


@FUZZ
@given(content=damaged((STORED / "manifest.json").read_bytes()))
def test_manifests(stored, content):
    (stored / "manifest.json").write_bytes(content)
    gives_a_result_or_one_line(lambda: read_all(stored))


@FUZZ
@given(content=damaged((STORED / "train/shard-00001.json").read_bytes()))
def test_records_of_shards(stored, content):
    (stored / "train/shard-00001.json").write_bytes(content)
    gives_a_result_or_one_line(lambda: finished_shards(stored, "train"))


# --- other files ------------------------------------------------------------------------------------------------------


def read_samples(folder):
    samples = open_split(
        folder, read_manifest(STORED), "train", seed=0, horizontal_flip=True, max_caption_tokens=3
    )  # hashes are compared by `prepare --check` and when a set is copied, not at every start
    samples.__getitems__([(number, number) for number in range(4)])


FIELDS = ["pixels", "caption_starts", "token_starts", "text_starts", "caption_features", "caption_text"]


@FUZZ
@given(field=st.sampled_from(FIELDS), place=st.integers(0, 400), changed=st.binary(min_size=1, max_size=8))
def test_arrays_of_the_right_length(stored, field, place, changed):
    path = stored / f"train/shard-00000.{field}.npy"
    whole = path.read_bytes()
    place %= len(whole) - len(changed)
    path.write_bytes(whole[:place] + changed + whole[place + len(changed) :])
    gives_a_result_or_one_line(lambda: read_samples(stored))
    path.write_bytes(whole)


def test_the_undamaged_set_is_read():
    read_all(STORED)
    read_samples(STORED)


TEXTS = {
    read_caption_file: "A face.\nKäse\n".encode(),
    read_number_list: NAMES,
    read_class_names: b"1 Yoga\n2 Diving\n",
    lambda path: read_list(path, {"Yoga": 0}): b"Yoga/v_Yoga_g01_c01.avi 1\n",
    read_filename_list: pickle.dumps(["1", "2.jpg"], protocol=2),
}


@pytest.mark.parametrize("reader", TEXTS)
@FUZZ
@given(data=st.data())
def test_lists(tmp_path, reader, data):
    path = tmp_path / "list"
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=100), damaged_bytes(TEXTS[reader]))))
    gives_a_result_or_one_line(lambda: reader(path))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@FUZZ
@given(data=st.data())
def test_pictures(tmp_path, kind, data):
    if not (tmp_path / "whole").exists():
        Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(tmp_path / "whole", format=kind)
    path = tmp_path / "x.png"
    path.write_bytes(data.draw(damaged_bytes((tmp_path / "whole").read_bytes())))
    gives_a_result_or_one_line(lambda: resize_and_crop(decode_image(path, upright=True), 16))
