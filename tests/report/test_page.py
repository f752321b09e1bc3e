import json
import shutil
from configparser import ConfigParser
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from report.browser import CHROMIUM, look_at
from report.synthetic import write_run

from zigma_pl.cli.commands import report as command
from zigma_pl.core.errors import UserError

VOID = {"br", "img", "link", "meta", "source"}


class Page(HTMLParser):
    """Elements with their attributes; fails where the nesting is wrong."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def report(project, tmp_path_factory):
    """The path of a report on the synthetic project, kept away from what it was made of."""
    path = tmp_path_factory.mktemp("out") / "report" / "index.html"
    assert command.main(arguments(project, path)) == 0
    return path


def arguments(project, path):
    return [f"--results={project / 'results'}", f"--experiments={project / 'experiments'}", f"--out={path}"]


@pytest.fixture
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def test_everything_it_shows_lies_beside_it(report, page):
    addresses = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    files = [address for address in addresses if not address.startswith(("#", "data:"))]
    assert len(files) > 20
    assert all(address.startswith("assets/") for address in files)
    assert [address for address in files if not (report.parent / unquote(address)).is_file()] == []
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors
    assert not page.all("script")
    assert "url(" not in report.read_text()
    assert "@import" not in report.read_text()


def test_it_can_be_read_by_all(page):
    assert page.elements[0] == ("html", {"lang": "en"})
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert all(image["alt"] and int(image["width"]) > 0 for image in page.all("img"))
    assert len(page.all("img")) > 15
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.all("h1")) == 1
    assert all("scope" in attributes for attributes in page.all("th"))


def test_tables_rows_and_protocols_are_there(page):
    for part in (
        "Scale smoke: synthetic MMCelebAHQ; 32 px; 64 samples; lite features",
        "not run",
        "45.5",
        "A remark by <hand> & eye:",
        "Training loss",
        "Validation loss by time",
        "FID lite ↓ by experiment",
        "sampler, num steps",
        "a processor",
        "zigzag 8: bottom-right, columns",
    ):
        assert part in page.text
    assert "| left |" not in page.text
    assert "**" not in page.text
    assert page.all("strong")
    links = [attributes["href"] for attributes in page.all("a")]
    assert "assets/1/experiments/table1_zigzag2.yaml" in links
    assert "assets/1/records/smoke/table1_zigzag8_seed1.json" in links


def test_videos_play_without_sound_on_request(page):
    (video,) = page.all("video")
    assert {"controls", "muted", "loop"} <= video.keys()
    assert page.all("source")[0]["type"] == "video/mp4"
    assert any(attributes.get("href", "").endswith(".gif") for attributes in page.all("a"))


def test_missing_files_are_said_and_a_second_report_replaces_the_first(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    out = tmp_path / "out" / "index.html"
    assert command.main(arguments(copy, out)) == 0
    assert (out.parent / "assets/1/records/smoke/table1_sweep.json").is_file()
    (copy / "results" / "smoke" / "table1_sweep.json").unlink()
    shutil.rmtree(copy / "results" / "smoke" / "table1_zigzag1")
    shutil.rmtree(copy / "logs")
    assert command.main(arguments(copy, out)) == 0
    assert [entry.name for entry in (out.parent / "assets").glob("[!.]*")] == ["2"]
    assert not (out.parent / "assets/2/records/smoke/table1_sweep.json").exists()
    text = Page(out.read_text()).text
    assert "results/smoke/table1_zigzag1/grid.png is missing" in text
    assert "Training loss" not in text
    assert "FID lite ↓ by experiment" in text


def test_scores_at_several_moments_become_a_curve(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    record = copy / "results" / "smoke" / "table1_sweep.json"
    earlier = json.loads(record.read_text())
    earlier["training"]["samples_seen"] = 320
    early = record.with_name("table1_sweep_early.json")
    early.write_text(json.dumps(earlier))
    out = tmp_path / "out" / "index.html"
    assert command.main(arguments(copy, out)) == 0
    page = Page(out.read_text())
    texts = [attributes["alt"] for attributes in page.all("img")]
    assert any(text.startswith("FID lite ↓. FID lite ↓ against samples seen: sweep ends at 800.0") for text in texts)
    assert "320 samples, seed 0" in page.text
    assert (out.parent / "assets/1/records/smoke/320" / early.name).read_text() == early.read_text()


def test_runs_of_the_same_name_do_not_replace_each_other(tmp_path, repository):
    shutil.copytree(repository / "experiments", tmp_path / "experiments")
    first = write_run(tmp_path, "table1_sweep", 0, 1.0)
    other = first.parent / "again" / first.name
    other.parent.mkdir()
    other.write_text(first.read_text().replace('"seed": 0', '"seed": 5'))
    out = tmp_path / "report" / "index.html"
    assert command.main(arguments(tmp_path, out)) == 0
    records = {path.read_text() for path in (out.parent / "assets/1/records/smoke").iterdir()}
    assert records == {first.read_text(), other.read_text()}


def test_a_folder_of_other_files_is_not_emptied(project, tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="assets"):
        command.main(arguments(project, tmp_path / "index.html"))
    assert (tmp_path / "assets" / "thesis.txt").read_text() == "mine"


def test_out_is_a_page_that_can_be_written(project, tmp_path):
    with pytest.raises(UserError, match=r"\.html"):
        command.main(arguments(project, tmp_path / "index.txt"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        command.main(arguments(project, tmp_path / "file" / "index.html"))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width_px", "dark"), [(400, True), (1400, False)])
def test_a_browser_shows_all_of_it_without_network(report, tmp_path, width_px, dark):
    shown = tmp_path / "report"
    shutil.copytree(report.parent, shown)
    state, console, asked_for = look_at(shown / "index.html", tmp_path / "profile", width_px=width_px, dark=dark)
    assert (console, asked_for) == ([], [])
    assert len(state["pictures"]) > 10
    assert [src for src, width in state["pictures"] if width == 0] == []
    assert [width for _, width in state["videos"]] == [96]
    assert width_px - 40 < state["page_width"] == state["window_width"]  # only tables scroll horizontally
    lightness = sum(map(int, state["ground"].removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert lightness < 60 if dark else lightness > 200


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_the_browser_test_sees_faults(report, tmp_path):
    shown = tmp_path / "report"
    shutil.copytree(report.parent, shown)
    faults = '<img src="http://192.0.2.1/a.png" alt=""><script>console.error("oh");</script></main>'
    page = shown / "index.html"
    page.write_text(page.read_text().replace("</main>", faults))
    state, console, asked_for = look_at(page, tmp_path / "profile", width_px=800, dark=False)
    assert state["pictures"][-1] == ["http://192.0.2.1/a.png", 0]
    assert asked_for == ["http://192.0.2.1/a.png"]
    assert '"oh"' in console[0]


def test_the_committed_report_shows_the_committed_records(repository, committed_results):
    """It is made by hand, where curves and pictures lie: `python -m zigma_pl report --out docs/report/index.html`."""
    texts = [(repository / name).read_bytes() for name in committed_results if name.endswith(".json")]
    committed = {text for text in texts if "scores" in json.loads(text)}
    shown = {path.read_bytes() for path in (repository / "docs/report/assets").rglob("*.json")}
    assert committed
    assert shown == committed


def test_the_templates_are_installed(repository):
    setup = ConfigParser()
    setup.read(repository / "setup.cfg")
    (pattern,) = setup["options.package_data"]["zigma_pl.suite.report"].split()
    installed = {path.name for path in (repository / "zigma_pl" / "suite" / "report").glob(pattern)}
    assert installed == {path.name for path in (repository / "zigma_pl" / "suite" / "report" / "templates").iterdir()}
