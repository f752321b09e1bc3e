import pickle
import warnings

import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.data.sources.split_lists import number_in_name, read_filename_list, read_number_list, read_splits


def write_lists(root, **lists):
    for split, ids in lists.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / split / "filenames.pickle").write_bytes(pickle.dumps([str(i) for i in ids]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_lists_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "filenames.pickle"
    path.write_bytes(pickle.dumps(["3", "11.jpg", "0"], protocol=protocol))
    assert read_filename_list(path) == [3, 11, 0]


def test_list_written_by_python_2(tmp_path):
    path = tmp_path / "filenames.pickle"
    path.write_bytes(b"(lp0\nS'12'\np1\naV7\np2\na.")
    assert read_filename_list(path) == [12, 7]


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: ["1", bad], lambda bad: {"a": bad}])
def test_hostile_pickle_executes_nothing(tmp_path, wrap):
    path, victim = tmp_path / "filenames.pickle", tmp_path / "victim"
    path.write_bytes(pickle.dumps(wrap(Hostile(victim))))
    with pytest.raises(UserError, match="not executed") as error:
        read_filename_list(path)
    assert str(path) in str(error.value)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(["1", "2"])[:-3]])
def test_damaged_pickle_is_named(tmp_path, content):
    path = tmp_path / "filenames.pickle"
    path.write_bytes(content)
    with pytest.raises(UserError, match="download it again") as error:
        read_filename_list(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", ["12", {"1": 2}, ["1", 2], ["1", b"2"], [["1"]], ["cat"], ["../7"], ["-3"]])
def test_anything_but_a_list_of_ids_is_refused(tmp_path, value):
    path = tmp_path / "filenames.pickle"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="download it again"):
        read_filename_list(path)


def test_good_lists_are_taken_as_they_are_and_silently(tmp_path):
    write_lists(tmp_path, train=range(24_000), test=range(24_000, 30_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = read_splits(tmp_path, set())
    assert splits == {"train": list(range(24_000)), "test": list(range(24_000, 30_000))}


@pytest.mark.parametrize("num_images", [10, 30_000])
def test_swapped_lists_are_exchanged_with_a_warning(tmp_path, num_images):
    num_train = num_images * 4 // 5
    write_lists(tmp_path, test=range(num_train), train=range(num_train, num_images))
    with pytest.warns(UserWarning, match="swapped") as caught:
        splits = read_splits(tmp_path, set())
    assert len(caught) == 1
    assert splits == {"train": list(range(num_train)), "test": list(range(num_train, num_images))}


def test_own_split_is_respected(tmp_path):
    write_lists(tmp_path, train=[5, 6, 7, 8, 9, 1], test=[0, 2])  # mixed ids: not the published files swapped
    assert read_splits(tmp_path, set()) == {"train": [5, 6, 7, 8, 9, 1], "test": [0, 2]}


def test_full_size_lists_that_are_not_the_published_ones_are_reported(tmp_path):
    write_lists(tmp_path, train=range(6_000, 30_000), test=range(6_000))
    with pytest.warns(UserWarning, match="not the published split"):
        assert read_splits(tmp_path, set())["test"] == list(range(6_000))


def test_without_lists_the_published_ranges_are_used_and_said(tmp_path):
    with pytest.warns(UserWarning, match="ids below 24000"):
        splits = read_splits(tmp_path, {3, 23_999, 24_000, 29_999})
    assert {name: sorted(ids) for name, ids in splits.items()} == {"train": [3, 23_999], "test": [24_000, 29_999]}


def test_one_list_missing_or_shared_ids(tmp_path):
    write_lists(tmp_path, train=[0, 1, 2])
    with pytest.raises(UserError, match=r"test.filenames.pickle does not exist"):
        read_splits(tmp_path, {0, 1, 2, 3})
    write_lists(tmp_path, test=[2, 3])
    with pytest.raises(UserError, match="share 1 ids, such as 2"):
        read_splits(tmp_path, {0, 1, 2, 3})


def test_numbers_in_names():
    names = ["12.jpg", "00000/00012.png", "imgHQ00012.npy", "a/b/012.webp", "face.png", "12a.png", "12", "x12.png"]
    assert [number_in_name(name) for name in names] == [12, 12, 12, 12, None, None, None, None]


def test_text_list(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("imgHQ00003.npy\r\n\n00011.png\n")
    assert read_number_list(path) == [3, 11]
    for content in (b"", b"cat.png\n", b"1.png\n1.png\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="copy it there again") as error:
            read_number_list(path)
        assert str(path) in str(error.value)
