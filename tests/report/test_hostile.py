"""Records that others wrote. Kinds: names that become paths; text that becomes markup; truncated files."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from contextlib import suppress
from functools import reduce
from html.parser import HTMLParser
from operator import getitem
from pathlib import Path

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from report.synthetic import make_record, write_grid

from zigma_pl.cli.commands import report, tables
from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.record import write_result
from zigma_pl.suite.report.experiments import read_experiment
from zigma_pl.suite.report.markdown import escape, results_page
from zigma_pl.suite.report.page import Sources, write_report
from zigma_pl.suite.report.results import RecordCollection, load_results

INJECTED = "a\n\n# Heading\n\n<script>alert(1)</script> [x](http://evil.example) ![y](z) `c` | *b* &lt; {{ 7 * 7 }}"
TABLE1 = [read_experiment(file) for file in sorted(Path(__file__).parents[2].glob("experiments/table1_*.yaml"))]


def plain_record():
    record = make_record("table1_sweep", 0, 1.0, Path("results/smoke/table1_sweep"), False, Path("logs"))
    return json.loads(record.model_dump_json())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one record, which tests change; without scan orders, which take a second to plot."""
    monkeypatch.setattr("zigma_pl.suite.report.page._path_charts", list)
    folder = tmp_path / "project"
    (folder / "results" / "smoke").mkdir(parents=True)
    return folder


def write(folder, plain):
    (folder / "results" / "smoke" / "table1_sweep.json").write_text(json.dumps(plain))


def draw(folder):
    """Write the page and results.md of table 1; returns both texts."""
    results, page = RecordCollection(load_results(folder / "results")), folder / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    write_report(Sources(TABLE1, results, folder / "results"), page)
    return page.read_text(), results_page(TABLE1, results, folder / "docs" / "results.md", folder / "results")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_text_of_a_record_is_escaped_where_it_is_written(folder):
    plain = plain_record()
    plain["protocol"]["data"]["note"] = plain["protocol"][INJECTED] = plain["machine"]["device"] = INJECTED
    plain["training"]["log_folder"] = 'x" onload="alert(1)'
    plain["pictures"]["grid"] = '"><script>.png'
    write(folder, plain)
    page, markdown = draw(folder)
    assert "script" not in Tags(page).found
    assert "<script>" not in page
    assert "49" not in page[page.index("Machine") :].partition("</dl>")[0]
    (line,) = [line for line in markdown.splitlines() if "alert" in line]
    assert line.startswith("### Scale smoke: a # Heading \\<script>alert(1)\\</script> \\[x\\](http\\://evil.example)")
    assert r"\`c\` \| \*b\* \&lt;" in line


@pytest.mark.parametrize("text", ["a_b c", "FID 45.5 (5,000 samples)", "0.1281 ± 0.0007", "zigzag-8, ↓", "a & b"])
def test_plain_text_is_not_changed_in_markdown(text):
    assert escape(text) == text


@pytest.mark.parametrize("text", ["# a", "> a", "- a", "| a", "<b>", "_a_", "www.x.y"])
def test_markup_is_escaped_in_markdown(text):
    assert "\\" in escape(text)


@pytest.mark.parametrize("key", ["scale", "row"])
def test_a_record_cannot_name_a_place_outside(folder, key):
    write(folder, {**plain_record(), key: "../../../../escaped"})
    with pytest.raises(UserError, match=rf"table1_sweep\.json.*{key}"):
        load_results(folder / "results")


@pytest.mark.parametrize("path", ["secret.png", "../secret.png", "results/smoke/../../secret.png", "{}/secret.png"])
def test_pictures_outside_of_the_folder_of_the_record_are_not_copied(folder, path):
    write_grid(folder / "secret.png", 0)
    plain = plain_record()
    plain["pictures"]["grid"] = path.format(folder)
    write(folder, plain)
    page, _ = draw(folder)
    assert "is missing" in page
    assert not list((folder / "report").rglob("*.png"))
    (folder / "results" / "smoke" / "link.png").symlink_to(folder / "secret.png")
    write(folder, {**plain, "pictures": {"grid": "results/smoke/link.png"}})
    assert "is missing" in draw(folder)[0]


def test_a_picture_beside_the_record_is_copied_also_by_its_absolute_path(folder):
    write_grid(folder / "results" / "smoke" / "table1_sweep" / "grid.png", 0)
    for grid in ("results/smoke/table1_sweep/grid.png", str(folder / "results/smoke/table1_sweep/grid.png")):
        write(folder, {**plain_record(), "pictures": {"grid": grid}})
        assert "is missing" not in draw(folder)[0]


# ------------------------------------------------------------------------------------------------------ whole or not
def full_disk(*_, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def options(folder, repository):
    return [f"--results={folder / 'results'}", f"--experiments={repository / 'experiments'}"]


def test_tables_on_a_full_disk_leave_what_was_there(folder, repository, monkeypatch):
    write(folder, plain_record())
    out, index = folder / "results.md", folder / "README.md"
    arguments = [*options(folder, repository), f"--out={out}", f"--index={index}"]
    assert tables.main(arguments) == 0
    before = out.read_text(), index.read_text()
    write(folder, {**plain_record(), "scale": "h100"})
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        tables.main(arguments)
    assert (out.read_text(), index.read_text()) == before
    assert {entry.name for entry in folder.iterdir()} == {"results", "results.md", "README.md"}


@pytest.mark.parametrize("cause", ["pathlib.Path.write_bytes", "os.fsync", "PIL.Image.Image.save"])
def test_a_report_on_a_full_disk_leaves_the_page_and_its_assets(folder, repository, monkeypatch, cause):
    write(folder, plain_record())
    out = folder / "report" / "index.html"
    arguments = [*options(folder, repository), f"--out={out}"]
    draw(folder)
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    picture = folder / "results" / "smoke" / "table1_sweep" / "grid.png"
    write_grid(picture, 0)
    monkeypatch.setattr("zigma_pl.suite.report.assets._LARGE_BYTES", 0)
    monkeypatch.setattr(cause, full_disk)
    with pytest.raises(UserError, match="No space left"):
        report.main(arguments)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def killed_in_mid_write(command, arguments, name, monkeypatch):
    """Run a command in a process that is killed when the file of this name is written but not yet in its place."""

    def run():
        replace = Path.replace
        monkeypatch.setattr(
            Path,
            "replace",
            lambda path, target: (
                os.kill(os.getpid(), signal.SIGKILL) if Path(target).name == name else replace(path, target)
            ),
        )
        command.main(arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_report_leaves_the_page_and_its_assets_and_the_next_one_removes_its_rest(
    folder, repository, monkeypatch
):
    write(folder, plain_record())
    out = folder / "report" / "index.html"
    arguments = [*options(folder, repository), f"--out={out}"]
    assert report.main(arguments) == 0
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    killed_in_mid_write(report, arguments, out.name, monkeypatch)
    after = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    assert report.main(arguments) == 0
    assert len([path for path in out.parent.rglob("*") if path.is_file()]) == len(before)


def test_killed_tables_leave_files_that_are_whole(folder, repository, monkeypatch):
    write(folder, plain_record())
    out, index = folder / "results.md", folder / "README.md"
    arguments = [*options(folder, repository), f"--out={out}", f"--index={index}"]
    assert tables.main(arguments) == 0
    before = out.read_text()
    write(folder, {**plain_record(), "scale": "h100"})
    killed_in_mid_write(tables, arguments, out.name, monkeypatch)
    written = index.read_text()
    assert out.read_text() == before
    assert tables.main(arguments) == 0
    assert index.read_text() == written
    assert {entry.name for entry in folder.iterdir()} == {"results", "results.md", "README.md"}


# --------------------------------------------------------------------------------------------------------------- fuzz
ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=5), st.floats(), max_size=2)
    | st.sampled_from([10**400, "../..", "x" * 300, "\ud800", 1e308, -1e308])
)


def places(value, path=()):
    """Yield the path of every value in a record."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


PLACES = list(places(plain_record()))


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=150)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3), second=st.booleans())
def test_mutated_records_give_tables_or_one_line(tmp_path_factory, changes, second):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plain = plain_record()
    for path, new in changes:
        with suppress(KeyError, IndexError, TypeError):  # an earlier change removed the key
            reduce(getitem, path[:-1], plain)[path[-1]] = new
    (folder / "a.json").write_text(json.dumps(plain))
    if second:
        write_result(make_record("table1_sweep_seed1", 1, 1.0, Path("p"), False, Path("logs")), folder)
    message = ""
    try:
        results_page(TABLE1, RecordCollection(load_results(folder)), folder / "results.md", folder)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
