import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.store import Chunk, SampleStore


def chunk(store, number, num_network_calls=5):
    ids = torch.tensor(store.sample_ids(number))
    pictures = (ids[:, None, None, None] + torch.arange(16).reshape(1, 1, 4, 4)).to(torch.uint8)
    return Chunk(pictures, ids, num_network_calls)


@pytest.fixture
def store(tmp_path):
    store = SampleStore(tmp_path, {"seed": 0}, chunk_size=4)
    store.open()
    return store


def test_chunks_are_read_back_and_cut_to_what_was_asked_for(store):
    store.write(0, chunk(store, 0))
    store.write(1, chunk(store, 1, num_network_calls=7))
    assert store.has(1)
    assert not store.has(2)
    assert torch.equal(store.read(1).pictures, chunk(store, 1).pictures)
    assert store.read_first(1, 6).sample_ids.tolist() == [4, 5]
    assert store.num_network_calls(4) == 5
    assert store.num_network_calls(6) == pytest.approx((4 * 5 + 2 * 7) / 6)
    assert {path.name for path in store.folder.iterdir()} == {
        "sampling.json",
        "chunk-00000000.npz",
        "chunk-00000004.npz",
    }


def test_every_chunk_is_the_share_of_one_process(store):
    shares = [list(store.chunk_indices(21, rank, 3)) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(6))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_other_samples_have_another_folder(tmp_path):
    folders = [
        SampleStore(tmp_path, {"seed": seed}, chunk_size=size).folder for seed, size in ((0, 4), (1, 4), (0, 8), (0, 4))
    ]
    assert folders[0] == folders[3]
    assert len(set(folders)) == 3


def test_what_a_killed_run_leaves_is_removed(store):
    (store.folder / ".unfinished-17-chunk-00000000.npz").write_bytes(b"half")
    store.open()
    assert [path.name for path in store.folder.iterdir()] == ["sampling.json"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other ids"])
def test_damaged_chunk_is_named_before_sampling_goes_on(damage, store):
    store.write(0, chunk(store, 0))
    store.write(1, chunk(store, 1))
    if damage == "other ids":
        store.path(1).replace(store.path(0))
    else:
        content = store.path(0).read_bytes()
        store.path(0).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=r"chunk-00000000\.npz is damaged .*: remove it"):
        store.has(0)


def test_flipped_bit_is_found_when_read(store):
    store.write(0, chunk(store, 0))
    content = bytearray(store.path(0).read_bytes())
    place = content.index(bytes(range(12)))  # in the pictures
    content[place] ^= 1
    store.path(0).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        store.read(0)


def test_missing_chunk_names_the_shared_folder(store):
    with pytest.raises(UserError, match=r"does not exist.*samples_dir"):
        store.read(3)
