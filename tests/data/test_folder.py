"""A folder of pictures. Kind: errors, or silence, that say something else than what is wrong."""

import json
from functools import partial

import pytest
import torch
from PIL import Image

from zigma_pl.cli.commands import prepare
from zigma_pl.core.errors import UserError
from zigma_pl.data import ImageFolder
from zigma_pl.data.sources import folder as folder_module
from zigma_pl.data.sources.folder import split_by_hash

SPLITS = ("train", "validation", "test")


def draw(root, *names, size=(20, 16), colour="red"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(root / name)


def write_captions(root, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (root / "captions.jsonl").write_text(text, encoding="utf-8")


def folder(root, **options):
    return ImageFolder(str(root), **{"image_size_px": 16, "num_workers": 0, "batch_size": 4, **options})


def everything_in_train(root, **options):
    return folder(root, validation_share=0, test_share=0, **options).load_split("train")


def refused(message, open_split):
    with pytest.raises(UserError, match=message) as error:
        open_split()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pictures_of_all_kinds_anywhere_sorted_by_name(tmp_path):
    draw(tmp_path, "b.JPG", "a/2.png", "a/1.webp", "a/deep/er/3.jpeg", "z.bmp")
    draw(tmp_path, ".hidden.png", ".thumbnails/1.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert everything_in_train(tmp_path).names == ["a/1.webp", "a/2.png", "a/deep/er/3.jpeg", "b.JPG", "z.bmp"]
    item = everything_in_train(tmp_path)[3]
    assert (item.image.size, item.class_id, item.captions) == ((20, 16), None, None)


def test_linked_folders_are_read(tmp_path):
    draw(tmp_path, "elsewhere/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cats").symlink_to(tmp_path / "elsewhere")
    split = everything_in_train(tmp_path / "root", condition="class")
    assert (split.names, split.class_ids) == (["cats/1.png"], [0])


def test_transparent_pictures_come_on_white_and_turned_ones_upright(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (20, 16)).save(tmp_path / "side.jpg", exif=exif)
    split = everything_in_train(tmp_path)
    assert split[0].image.getpixel((1, 1)) == (255, 255, 255)
    assert split[1].image.size == (16, 20)


def test_split_by_hash_is_disjoint_complete_fixed_and_about_as_large_as_asked(tmp_path):
    names = [f"{i}.png" for i in range(4000)]
    shares = {"validation": 0.1, "test": 0.2}
    splits = list(split_by_hash(names, shares).values())
    assert abs(splits.count("validation") - 400) < 80
    assert abs(splits.count("test") - 800) < 100
    assert set(split_by_hash(names[:50], {"validation": 0, "test": 0}).values()) == {"train"}
    draw(tmp_path, *names[:60], size=(4, 4))
    data = folder(tmp_path, validation_share=0.1, test_share=0.2)
    assert sorted(name for split in SPLITS for name in data.load_split(split).names) == sorted(names[:60])
    before = data.load_split("test").names
    draw(tmp_path, "new.png")
    again = folder(tmp_path, validation_share=0.1, test_share=0.2, seed=7).load_split("test").names
    assert [name for name in again if name != "new.png"] == before


def test_a_picture_never_moves_to_another_split():
    expected = ["train", "validation", "train", "test", "train", "validation", "test", "validation"]
    names = [f"cats/{i}.png" for i in range(8)]
    assert list(split_by_hash(names, {"validation": 0.3, "test": 0.3}).values()) == expected


@pytest.mark.parametrize("num_names", range(3, 40))
def test_no_split_of_three_or_more_pictures_is_empty_and_only_the_nearest_moves(num_names):
    names = [f"{i}.png" for i in range(num_names)]
    shares = {"validation": 0.05, "test": 0.05}
    splits = split_by_hash(names, shares)
    assert set(splits.values()) == set(SPLITS)
    assert split_by_hash(reversed(names), shares) == splits
    by_hash_alone = {name: split_by_hash([name], shares)[name] for name in names}
    moved = [name for name in names if splits[name] != by_hash_alone[name]]
    assert len(moved) == len(set(SPLITS).difference(by_hash_alone.values()))
    # Held out are [0, 0.05) and [0.05, 0.1), so the first to move is the smallest hash in train.
    hashes = {name: folder_module._hash(name) for name in names}
    for name in moved:
        smaller = [other for other in names if hashes[other] < hashes[name]]
        assert all(splits[other] in ("validation", "test") for other in smaller)


def test_two_pictures_train_and_validate_and_one_trains():
    shares = {"validation": 0.05, "test": 0.05}
    assert sorted(split_by_hash(["1.png", "2.png"], shares).values()) == ["train", "validation"]
    assert split_by_hash(["1.png"], shares) == {"1.png": "train"}
    assert split_by_hash([], shares) == {}


def test_training_is_not_left_empty_by_large_shares():
    for num_names in range(3, 20):
        splits = split_by_hash([f"{i}.png" for i in range(num_names)], {"validation": 0.5, "test": 0.49})
        assert set(splits.values()) == set(SPLITS)


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_folders_of_splits(tmp_path, validation):
    draw(tmp_path, "train/cats/1.png", "train/dogs/1.png", f"{validation}/dogs/2.png", "test/cats/3.png")
    data = folder(tmp_path, condition="class")
    assert [data.load_split(split).names for split in SPLITS] == [
        ["train/cats/1.png", "train/dogs/1.png"],
        [f"{validation}/dogs/2.png"],
        ["test/cats/3.png"],
    ]
    assert [data.load_split(split).class_ids for split in SPLITS] == [[0, 1], [1], [0]]


def test_split_without_a_folder_is_taken_out_of_train(tmp_path):
    draw(tmp_path, *(f"train/{i}.png" for i in range(40)), "test/1.png", size=(4, 4))
    data = folder(tmp_path, validation_share=0.3, test_share=0.3)
    names = {split: data.load_split(split).names for split in SPLITS}
    assert names["test"] == ["test/1.png"]
    assert len(names["train"]) + len(names["validation"]) == 40
    expected = split_by_hash([f"{i}.png" for i in range(40)], {"validation": 0.3})
    assert all(expected[name.removeprefix("train/")] == "validation" for name in names["validation"])


def test_classes(tmp_path):
    draw(tmp_path, "dogs/1.png", "cats/x/1.png", "cats/2.png")
    data = folder(tmp_path, condition="class", validation_share=0, test_share=0)
    assert data.num_classes == 2
    split = data.load_split("train")
    assert dict(zip(split.names, split.class_ids, strict=True)) == {"cats/2.png": 0, "cats/x/1.png": 0, "dogs/1.png": 1}
    raw = next(iter(data.train_dataloader()))
    assert raw.class_ids.shape == (4,)
    assert raw.images.shape == (4, 3, 16, 16)
    assert (folder(tmp_path).num_classes, folder(tmp_path).has_captions) == (None, False)


def test_sampling_with_a_given_number_of_classes_needs_no_folder(tmp_path):
    data = folder(tmp_path / "nowhere", condition="class", num_classes=3, num_predict_samples=4)
    data.setup("predict")
    assert next(iter(data.predict_dataloader())).class_ids.tolist() == [0, 1, 2, 0]


def test_what_decides_on_the_items_is_described(tmp_path):
    described = folder(tmp_path, condition="caption", test_share=0.25).described()
    assert described.items() >= {"condition": "caption", "validation_share": 0.05, "test_share": 0.25}.items()
    assert "root" not in described


def test_prepared_classes_need_no_folder(tmp_path):
    root = tmp_path / "root"
    draw(root, *(f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in ("cats", "dogs")))
    options = ["--root", str(root), "--condition", "class", "--image_size_px", "16", "--num_workers", "0"]
    assert prepare.main(["folder", *options, "--out", str(tmp_path / "out")]) == 0
    root.rename(tmp_path / "gone")
    data = folder(root, condition="class", cache=str(tmp_path / "out"))
    assert data.num_classes == 2
    data.setup("fit")
    assert sorted(next(iter(data.val_dataloader())).class_ids.tolist()) == [0, 1]


def test_sixty_pictures_are_prepared(tmp_path):
    draw(tmp_path / "root", *(f"{'cats' if i % 2 else 'dogs'}/{i}.png" for i in range(60)), size=(8, 8))
    options = ["--root", str(tmp_path / "root"), "--condition", "class", "--image_size_px", "8", "--num_workers", "0"]
    assert prepare.main(["folder", *options, "--out", str(tmp_path / "out")]) == 0
    data = folder(tmp_path / "root", condition="class", image_size_px=8, cache=str(tmp_path / "out"))
    assert sum(len(data.samples(split)) for split in SPLITS) == 60


@pytest.mark.parametrize(
    ("pictures", "options", "says"),
    [
        (["1.png", "2.png", "3.png"], ["--test_share", "0"], r"for test: .*--test_share \(now 0"),
        (["1.png", "2.png"], [], r"--test_share"),
        (["1.png"], ["--condition", "class"], r"set --condition to"),
        ([], [], r"set --root to"),
        (["1.png", "2.png", "3.png"], ["--validation_share", "0.6", "--test_share", "0.6"], r"--validation_share 0\.6"),
    ],
)
def test_a_failed_prepare_names_its_options_and_leaves_no_folder(tmp_path, pictures, options, says):
    draw(tmp_path / "root", *pictures)
    command = ["folder", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "some" / "out"), *options]
    message = refused(says, lambda: prepare.main([*command, "--num_workers", "0"]))
    assert "data." not in message
    assert not (tmp_path / "some").exists()


def test_a_prepare_that_fails_in_its_first_shard_leaves_only_what_was_there(tmp_path):
    draw(tmp_path / "root", *(f"{split}/1.png" for split in ("train", "validation", "test")))
    (tmp_path / "root" / "train" / "1.png").write_text("no picture")
    command = ["folder", "--root", str(tmp_path / "root"), "--num_workers", "0", "--out"]
    (tmp_path / "mine").mkdir()
    for out in ("mine", "other"):
        refused("--on_bad_file skip", partial(prepare.main, [*command, str(tmp_path / out)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "root"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".lock"]


def test_captions(tmp_path):
    draw(tmp_path, "1.png", "deep/2.png")
    write_captions(
        tmp_path,
        '\ufeff{"file_name": "./1.png", "caption": "a \\n red\u2028 square "}',
        "",
        {"file_name": "deep/2.png", "captions": ["one", "", "two"]},
    )
    split = everything_in_train(tmp_path, condition="caption")
    assert split.captions == [["a red square"], ["one", "two"]]
    data = folder(tmp_path, condition="caption", caption_dim=8, validation_share=0, test_share=0)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.conditions["caption"].values.shape == (4, 32, 8)
    assert torch.isfinite(batch.conditions["caption"].values).all()


def test_captions_in_text_files(tmp_path):
    draw(tmp_path, "cats/1.png", "cats/2.JPG")
    (tmp_path / "cats" / "1.txt").write_text("\ufeffa black cat\n\n  the cat of  a neighbour\n")
    (tmp_path / "cats" / "2.txt").write_text("a white cat")
    split = everything_in_train(tmp_path, condition="caption")
    assert split.captions == [["a black cat", "the cat of a neighbour"], ["a white cat"]]
    (tmp_path / "cats" / "2.txt").write_text("\n")
    captions = partial(everything_in_train, tmp_path, condition="caption")
    refused(r"cats/2\.txt is empty", captions)
    (tmp_path / "cats" / "2.txt").unlink()
    refused(r"cats/2\.txt does not exist: .*captions\.jsonl", captions)
    write_captions(tmp_path, {**LINE, "file_name": "cats/1.png"}, {**LINE, "file_name": "cats/2.JPG"})
    assert everything_in_train(tmp_path, condition="caption").captions == [["a square"], ["a square"]]


LINE = {"file_name": "1.png", "caption": "a square"}


@pytest.mark.filterwarnings("ignore:.*unsupported formats")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"captions\.jsonl has no line for 1 of 1 .* 1\.png: add"),
        ([LINE, LINE], r"captions\.jsonl, line 2: '1\.png' .* line 1"),
        ([LINE, {**LINE, "file_name": "2.png"}], r" 1 .* '2\.png', does not exist in .*: add them"),
        ([{**LINE, "file_name": "../1.png"}], r"line 1: file_name '\.\./1\.png'"),
        ([{**LINE, "file_name": "a/../../1.png"}], r"line 1: file_name 'a/\.\./\.\./1\.png'"),
        ([{**LINE, "file_name": "/etc/1.png"}], r"line 1: file_name '/etc/1\.png'"),
        (['{"file_name": "1.png", '], "line 1 is invalid .*JSON.*: write"),
        (["[1]"], "line 1 is invalid"),
        (['{"caption": "a"}'], r"line 1 is invalid \(file_name: "),
        ([{"file_name": "1.png"}], "line 1 has no caption"),
        ([{"file_name": "1.png", "caption": None}], "line 1 has no caption"),
        ([{**LINE, "caption": ["a"]}], r"line 1 is invalid \(caption: "),
        ([{**LINE, "file_name": ["1.png"]}], r"line 1 is invalid \(file_name: "),
        ([LINE, {**LINE, "file_name": "2.gif"}], r"'2\.gif', .* \.jpg, .*: convert"),
        ([LINE, {**LINE, "file_name": ".2.png"}], r"'\.2\.png', is hidden"),
        ([LINE, {**LINE, "file_name": "link.png"}], r"'link\.png', .* link"),
        ([{"file_name": "1.png", "captions": [" \n", ""]}], r"line 1: the caption of '1\.png' is empty"),
    ],
)
def test_faulty_captions_are_named_with_the_remedy(tmp_path, lines, message):
    draw(tmp_path, "1.png", ".2.png")
    (tmp_path / "2.gif").touch()
    (tmp_path / "link.png").symlink_to("1.png")
    write_captions(tmp_path, *lines)
    assert str(tmp_path) in refused(message, lambda: everything_in_train(tmp_path, condition="caption"))


@pytest.mark.parametrize("name", ["valid/1.png", "more/cats/1.png", "1.png"])
def test_pictures_beside_the_folders_of_the_splits_are_not_dropped_unsaid(tmp_path, name):
    draw(tmp_path, "train/1.png", "test/1.png", name)
    refused(f"has train/, but 1 .* '{name}'", lambda: ImageFolder(str(tmp_path)).load_split("train"))


def test_pictures_of_other_kinds_are_not_dropped_unsaid(tmp_path):
    draw(tmp_path, "1.png")
    for name in ("b.tif", "a.gif"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"2 images .* 'a\.gif': convert"):
        assert everything_in_train(tmp_path).names == ["1.png"]


def test_missing_or_binary_captions(tmp_path):
    draw(tmp_path, "1.png")
    refused(
        r"1\.txt does not exist: write .*captions\.jsonl", lambda: everything_in_train(tmp_path, condition="caption")
    )
    (tmp_path / "captions.jsonl").write_bytes(b"\xff\xfe\x00")
    refused("as UTF-8 text", lambda: everything_in_train(tmp_path, condition="caption"))


def test_faulty_classes(tmp_path):
    draw(tmp_path, "cats/1.png", "dogs/1.png")
    refused(
        "num_classes is 1, but .* has 2 class folders",
        lambda: everything_in_train(tmp_path, condition="class", num_classes=1),
    )
    (tmp_path / "birds").mkdir()
    message = refused("class folder", lambda: folder(tmp_path, condition="class").num_classes)
    assert str(tmp_path / "birds") in message
    draw(tmp_path, "birds/1.png", "loose.png")
    refused(r"loose\.png' is not in a class folder", lambda: folder(tmp_path, condition="class").num_classes)


def test_class_of_a_test_picture_must_be_known(tmp_path):
    draw(tmp_path, "train/cats/1.png", "test/dogs/1.png")
    data = folder(tmp_path, condition="class")
    refused(r"test/dogs/1\.png' has no folder in train/", lambda: data.load_split("test"))


def test_missing_or_empty_folders(tmp_path):
    refused("nowhere' .*: set data.root", lambda: folder(tmp_path / "nowhere").setup("fit"))
    refused("have no images", lambda: folder(tmp_path).setup("fit"))
    draw(tmp_path, "1.png")
    refused(
        r"for test: .* raise data\.test_share \(now 0\)",
        lambda: folder(tmp_path, test_share=0).setup("test"),
    )
    draw(tmp_path, "train/1.png", "val/1.png", "validation/1.png")
    refused("validation and val: ", lambda: folder(tmp_path).setup("fit"))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_picture_that_does_not_decode(tmp_path, content, num_workers):
    (tmp_path / "1.png").write_bytes(content)
    data = folder(tmp_path, validation_share=0, test_share=0, num_workers=num_workers)
    assert str(tmp_path / "1.png") in refused(
        "cannot decode .* replace it", lambda: next(iter(data.train_dataloader()))
    )


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2)])
def test_shares_out_of_range(tmp_path, shares):
    with pytest.raises(UserError):
        folder(tmp_path, validation_share=shares[0], test_share=shares[1])
    refused("data.num_classes needs data.condition 'class', got 'none'", lambda: folder(tmp_path, num_classes=3))
