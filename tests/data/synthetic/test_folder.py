import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.data.synthetic.folder import write_once


def write_three(folder):
    for name in ("a", "b", "deep/c"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)


def test_complete_one_is_reused_and_a_damaged_one_is_reported(tmp_path):
    folder = tmp_path / "set-synthetic" / "v1"
    write_once(folder, write_three, "three files")
    assert (folder / "deep/c").read_text() == "deep/c"
    write_once(folder, lambda _: pytest.fail("is drawn again"), "three files")
    (folder / "deep/c").unlink()
    with pytest.raises(UserError, match="remove that folder") as error:
        write_once(folder, write_three, "three files")
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", '{"num_files": "3"}', "[" * 100_000])
def test_a_damaged_record_is_one_line(tmp_path, content):
    """Kind: malformed files."""
    folder = tmp_path / "v1"
    write_once(folder, write_three, "three files")
    (folder / ".synthetic.json").write_text(content)
    with pytest.raises(UserError, match="remove that folder") as error:
        write_once(folder, write_three, "three files")
    assert "\n" not in str(error.value)


def test_a_foreign_folder_is_not_used_as_synthetic_data(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious.txt").write_text("real")
    with pytest.raises(UserError, match=r"files are missing"):
        write_once(tmp_path / "theirs", write_three, "three files")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["precious.txt"]


def test_nothing_half_made_stays(tmp_path):
    def fail_half_way(folder):
        write_three(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_once(tmp_path / "set-synthetic" / "v1", fail_half_way, "three files")
    assert list((tmp_path / "set-synthetic").iterdir()) == []


def test_of_two_processes_the_first_to_finish_wins(tmp_path):
    folder = tmp_path / "set-synthetic" / "v1"

    def finish_second(unfinished):
        write_once(folder, write_three, "three files")  # another process is quicker
        write_three(unfinished)
        (unfinished / "a").write_text("late")

    write_once(folder, finish_second, "three files")
    assert (folder / "a").read_text() == "a"
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]
