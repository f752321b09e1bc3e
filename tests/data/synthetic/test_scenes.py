import json

import numpy as np
import pytest
from PIL import Image

from zigma_pl.data.synthetic.scenes import COLOURS, draw_scene, draw_scene_attributes, write_coco, write_scene_captions


def written(folder, *arguments):
    folder.mkdir(parents=True)
    write_coco(folder, *arguments)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("year", "prefix"), [(2014, "COCO_{}2014_"), (2017, "")])
def test_layout_is_the_published_one(tmp_path, year, prefix):
    files = written(tmp_path / "coco", 10, 24, year)
    ids = {"train": [9 + 16 * i for i in range(8)], "val": [42, 58]}
    names = {f"{part}{year}/{prefix.format(part)}{i:012d}.jpg" for part in ids for i in ids[part]}
    assert set(files) == names | {f"annotations/captions_{part}{year}.json" for part in ids}
    for part in ids:
        content = json.loads(files[f"annotations/captions_{part}{year}.json"])
        assert set(content) == {"info", "images", "licenses", "annotations"}
        assert [image["id"] for image in content["images"]] == ids[part][::-1]
        assert sorted(a["image_id"] for a in content["annotations"]) == sorted(ids[part] * 5)
        captions = [annotation["caption"] for annotation in content["annotations"]]
        assert sum("\n" in caption for caption in captions) == sum(not caption for caption in captions) == 1
        for image in content["images"]:
            with Image.open(tmp_path / "coco" / f"{part}{year}" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    assert written(tmp_path / "first", 12, 24, 2017) == written(tmp_path / "second", 12, 24, 2017)


def test_pictures_are_not_square_and_some_are_grey():
    pictures = [draw_scene(draw_scene_attributes(9 + 16 * i), 24) for i in range(24)]
    assert all(min(picture.size) == 24 < max(picture.size) for picture in pictures)
    assert [picture.mode for picture in pictures].count("L") == 3
    assert len({picture.tobytes() for picture in pictures}) == 24


def test_captions_tell_what_is_drawn():
    for image_id in range(9, 9 + 16 * 40, 16):
        scene = draw_scene_attributes(image_id)
        captions = write_scene_captions(scene)
        assert len(set(captions)) == 5
        for group in scene.groups:
            assert group.place in captions[0]
            assert all(group.shape in caption for caption in captions)
            assert all((group.colour in caption) != scene.grey for caption in captions)
        assert scene.grey or scene.background in captions[1]
        assert str(sum(group.count for group in scene.groups)) in captions[4]


def test_shapes_are_where_they_are_said_to_be():
    centres = {"on the left": [], "on the right": [], "at the top": [], "at the bottom": []}
    for image_id in range(200):
        scene = draw_scene_attributes(image_id)
        pixels = np.asarray(draw_scene(scene, 48).convert("RGB")).astype(int)
        for group in scene.groups:
            alone = [other.colour for other in scene.groups].count(group.colour) == 1
            if group.place in centres and alone and not scene.grey:
                rows, columns = np.nonzero(np.abs(pixels - COLOURS[group.colour]).sum(2) == 0)
                horizontal = scene.in_columns
                side = pixels.shape[1] if horizontal else pixels.shape[0]
                centres[group.place].append((columns if horizontal else rows).mean() / side)
    assert all(len(found) > 10 for found in centres.values())
    assert max(centres["on the left"] + centres["at the top"]) < 0.4
    assert min(centres["on the right"] + centres["at the bottom"]) > 0.6
