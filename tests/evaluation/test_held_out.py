import pytest
import torch
from data.prepared.tiny import faces, prepare_faces, save_tiny_kl, write_faces

from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.data.picture_files import evenly_spaced
from zigma_pl.evaluation.held_out import NUM_PROBED, RealPictures


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The faces in `mm`, prepared as pixels in `pixels` and as latents of the autoencoder `kl` in `latents`."""
    folder = tmp_path_factory.mktemp("place")
    write_faces(folder / "mm")
    save_tiny_kl(folder / "kl")
    assert prepare_faces(folder / "mm", folder / "pixels", splits=["test"]) == 0
    assert prepare_faces(folder / "mm", folder / "latents", folder / "kl", splits=["test"]) == 0
    return folder


def data(place, cache, root="mm"):
    autoencoder = str(place / "kl") if cache == "latents" else "identity"
    return faces(place / root, cache=None if cache is None else str(place / cache), autoencoder=autoencoder)


def all_of(datamodule):
    pictures = RealPictures(datamodule, "test")
    return torch.stack([pictures[index] for index in range(len(pictures))])


@pytest.mark.parametrize("cache", ["pixels", "latents"])
def test_prepared_sets_are_compared_with_the_same_real_pictures(cache, place):
    live = all_of(data(place, None))
    assert live.shape == (4, 3, 16, 16)
    assert torch.equal(all_of(data(place, cache)), live)


def test_pixels_need_nothing_but_the_cache_and_latents_need_the_pictures(place):
    assert len(RealPictures(data(place, "pixels", root="nowhere"), "test")) == 4
    with pytest.raises(UserError, match=r"latents.*nowhere' does not exist"):
        RealPictures(data(place, "latents", root="nowhere"), "test")


@pytest.mark.parametrize("cache", [None, "latents"])
def test_samples_are_drawn_under_the_held_out_captions_in_turn(cache, place):
    datamodule = data(place, cache)
    raw = datamodule.held_out_conditions("test", range(6))
    assert raw.sample_ids.tolist() == list(range(6))
    assert raw.moments is None
    items = datamodule.pixel_items("test")
    assert all(caption in items[index % 4].captions for index, caption in enumerate(raw.captions))
    assert raw.captions == data(place, None).held_out_conditions("test", range(6)).captions
    assert datamodule.encode_conditions(raw, "cpu")["caption"].values.shape == (6, 12, 16)


def test_samples_are_drawn_under_the_held_out_classes():
    labels = Digits().load_split("test").labels.tolist()
    raw = Digits().held_out_conditions("test", [0, 1, 179, 5])
    assert raw.class_ids.tolist() == [labels[0], labels[1], labels[0], labels[5]]


def test_probed_items_are_spread():
    assert evenly_spaced(3, NUM_PROBED) == [0, 1, 2]
    assert evenly_spaced(32, NUM_PROBED) == list(range(0, 32, 2))
