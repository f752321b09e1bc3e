"""A prepared folder that was altered or does not fit, and data sets with bad files."""

import json

import pytest
from commands.prepared_place import one_line, prepare_again
from data.prepared.tiny import content_of, copied, faces, prepare_faces, save_tiny_kl

from zigma_pl.core.errors import UserError

# --- check ------------------------------------------------------------------------------------------------------------


def test_check_finds_a_changed_byte_and_the_remedy_works(place, tmp_path, capsys):
    out = copied(place / "whole", tmp_path / "out")
    path = out / "test/shard-00000.moments.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000\.moments\.npy has changed") as error:
        prepare_again(place, out, check=True)
    record = out / "test/shard-00000.json"
    assert f"remove {record} and run" in one_line(error)
    record.unlink()
    assert prepare_again(place, out) == 0
    assert prepare_again(place, out, check=True) == 0
    assert content_of(out) == content_of(place / "whole")
    assert "test: 4 samples" in capsys.readouterr().out


def test_check_finds_a_changed_data_set(place, tmp_path):
    root = copied(place / "mm", tmp_path / "mm")
    (root / "images/16.jpg").write_bytes((root / "images/3.jpg").read_bytes())
    with pytest.raises(UserError, match=r"whole/\w+: entries"):
        prepare_faces(root, place / "whole", place / "kl", check=True)
    captions = root / "celeba-caption/0.txt"
    captions.write_text(captions.read_text().upper())
    with pytest.raises(UserError, match="entry 0: captions differ"):
        prepare_faces(root, place / "whole", place / "kl", check=True)


# --- options that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "float16"}, "dtype 'float32', .*'float16'"),
        ({"shard_size": 7}, "shard_size 6, .* 7:"),
        ({"image_size_px": 8}, "image_size_px 16, .* 8:"),
        ({"max_caption_tokens": 9}, r"text_encoder\.max_tokens 12, .* 9:"),
        ({"num_validation_images": 2}, "num_validation_images 3, .* 2:"),
    ],
    ids=str,
)
def test_a_folder_prepared_with_other_options_is_not_gone_on_with(place, changed, named):
    before = content_of(place / "whole")
    with pytest.raises(UserError, match=named) as error:
        prepare_again(place, place / "whole", **changed)
    assert "--overwrite" in one_line(error)
    assert content_of(place / "whole") == before


def test_a_file_in_the_place_of_the_folder(place, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="is not writable"):
            prepare_again(place, out)


def test_overwrite_and_a_folder_of_other_things(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    assert prepare_again(place, out, shard_size=7, overwrite=True, splits=["test"]) == 0
    assert {path.name for path in out.iterdir()} == {"test", "manifest.json", ".lock"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(UserError, match=r"other files, such as 'thesis\.tex'"):
        prepare_again(place, tmp_path / "other", overwrite=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size_px": 8}, "image_size_px 16, but this run has 8:"),
        ({"autoencoder": "identity"}, r"autoencoder\.name '.*kl', but this run has 'identity'"),
        ({"caption_dim": 8}, r"text_encoder\.dim 16, but this run has 8:"),
        ({"synthetic": True}, "synthetic False, but this run has True"),
    ],
    ids=str,
)
def test_training_refuses_a_cache_that_does_not_fit(place, options, named):
    data = faces(place / "nowhere", **{"cache": str(place / "whole"), "autoencoder": str(place / "kl"), **options})
    with pytest.raises(UserError, match=named) as error:
        data.setup("fit")
    assert str(place / "whole") in one_line(error)


def test_the_autoencoder_is_known_by_its_weights(place, tmp_path):
    def setup(autoencoder):
        faces(place / "nowhere", cache=str(place / "whole"), autoencoder=str(autoencoder)).setup("fit")

    setup(copied(place / "kl", tmp_path / "moved"))
    with pytest.raises(UserError, match=r"autoencoder\.name '.*kl', but this run has '.*other'"):
        setup(save_tiny_kl(tmp_path / "other", seed=1))
    exchanged = copied(place, tmp_path / "place")
    save_tiny_kl(place / "kl", seed=1)
    try:
        with pytest.raises(UserError, match=r"autoencoder\.weights_sha256 '\w{12}\.\.\.'"):
            setup(place / "kl")
    finally:
        save_tiny_kl(place / "kl")
    assert exchanged.is_dir()


def test_folders_without_a_manifest_and_manifests_of_the_future(place, tmp_path):
    def setup(folder):
        faces(place / "nowhere", cache=str(folder), autoencoder=str(place / "kl")).setup("fit")

    with pytest.raises(UserError, match=r"has no manifest\.json.*python -m zigma_pl prepare"):
        setup(tmp_path)
    manifest = json.loads((place / "whole/manifest.json").read_text())
    for text, named in (
        (json.dumps({**manifest, "format_version": 2}), "written by a newer zigma_pl"),
        ("{", "cannot be used"),
        (json.dumps({"format_version": 1}), "cannot be used"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=named) as error:
            setup(tmp_path)
        assert str(tmp_path / "manifest.json") in one_line(error)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_files_stop_or_are_skipped_counted_and_listed(place, tmp_path, capsys, num_workers):
    root, out = copied(place / "mm", tmp_path / "mm"), tmp_path / "out"
    picture = root / "images/7.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    for number in range(16, 20):
        (root / f"images/{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"7\.jpg.*--on_bad_file skip") as error:
        prepare_faces(root, out, num_workers=num_workers)
    one_line(error)
    del error  # ends the worker, for which a garbage collection would wait 5 s
    assert prepare_faces(root, out, num_workers=num_workers, on_bad_file="skip") == 0
    printed = capsys.readouterr().out
    assert "15 train, 0 validation, 0 test" in printed
    assert "skipped 8" in printed
    assert str(picture) in printed
    train = json.loads((out / "manifest.json").read_text())["splits"]["train"]
    assert [[entry["item"] for entry in shard["skipped"]] for shard in train] == [[], [7], []]
    assert str(picture) in train[1]["skipped"][0]["reason"]
    data = faces(place / "nowhere", cache=str(out), batch_size=15)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).sample_ids.tolist() == list(range(15))
    assert prepare_faces(root, out, check=True) == 0
