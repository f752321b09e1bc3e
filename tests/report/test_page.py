import json
import shutil
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from report.browser import CHROMIUM, MISSING, look_at
from report.synthetic import CAPTIONS, write_logs, write_run

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


def arguments(project, path, *, reuse=None):
    folders = {name: project / name for name in ("results", "experiments", "logs")}
    options = [f"--{name}={folder}" for name, folder in folders.items()]
    return [*options, f"--reuse={reuse or project / 'nowhere'}", f"--out={path}"]


def linked(page, start, end):
    """Return the addresses of links from the page that begin and end so."""
    links = [attributes["href"] for attributes in page.all("a")]
    return [link for link in links if link.startswith(start) and link.endswith(end)]


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
    assert all(sample["aria-label"] for sample in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.all("h1")) == 1
    assert all("scope" in attributes for attributes in page.all("th"))


def test_it_opens_with_the_best_experiment_and_its_scores(page, repository):
    num_experiments = len(list((repository / "experiments").glob("*.yaml")))
    headline = page.text.partition("Contents")[0]
    for part in (
        "zigzag-8",
        "FID lite 492.0",
        "against 800.0 for sweep",
        f"4 of {num_experiments} experiments",
        "scale smoke",
        "none at",
    ):
        assert part in headline
    assert "synthetic MMCelebAHQ" in headline
    assert headline.index("zigzag-8") < headline.index("Summary")


def test_tables_experiments_and_protocols_are_there(page):
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
    assert len(linked(page, "assets/experiments/table1_zigzag2-", ".yaml")) == 1
    assert len(linked(page, "assets/runs/smoke/table1_zigzag8_seed1-", "/record.json")) == 1
    assert "seed 0: 480.0; seed 1: 504.0" in [cell.get("title") for cell in page.all("td")]


def test_samples_have_their_captions(page):
    assert [page.text.count(caption) > 1 for caption in CAPTIONS] == [True] * len(CAPTIONS)
    samples = [sample["aria-label"] for sample in page.all("svg")]
    experiments = ("sweep", "zigzag-1", "zigzag-8")
    assert samples == [*CAPTIONS, *(f"{name}: {caption}" for name in experiments for caption in CAPTIONS)]
    boxes = [sample["viewbox"] for sample in page.all("svg")]
    assert boxes == [f"{2 + 34 * column} 2 32 32" for column in range(4)] * 4


def test_no_chart_is_shown_twice(page, report):
    charts = [image["src"] for image in page.all("img") if image["src"].endswith(".svg")]
    assert len(charts) > 15
    assert len({(report.parent / unquote(chart)).read_bytes() for chart in charts}) == len(charts)
    of_table = [image["alt"] for image in page.all("img") if "/charts/table1/" in image["src"]]
    assert sum(text.startswith(("Validation loss.", "validation loss")) for text in of_table) == 1


def test_videos_play_without_sound_on_request(page):
    assert page.all("video")
    assert all({"controls", "muted", "loop"} <= video.keys() for video in page.all("video"))
    assert page.all("source")[0]["type"] == "video/mp4"
    assert any(attributes.get("href", "").endswith(".gif") for attributes in page.all("a"))


def test_missing_files_are_named_and_a_second_report_replaces_the_first(project, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    for log in (copy / "logs" / "smoke").iterdir():
        shutil.rmtree(log)
    shutil.rmtree(copy / "results" / "smoke" / "table1_zigzag1")
    out = tmp_path / "out" / "index.html"
    assert command.main(arguments(copy, out)) == 0
    first = {path.relative_to(out.parent).as_posix() for path in out.parent.rglob("*.json")}
    assert any("/table1_sweep-" in name for name in first)
    text = Page(out.read_text()).text
    assert "results/smoke/table1_zigzag1/grid.png is missing" in text
    assert "Training loss" not in text
    (copy / "results" / "smoke" / "table1_sweep.json").unlink()
    assert command.main(arguments(copy, out)) == 0
    second = {path.relative_to(out.parent).as_posix() for path in out.parent.rglob("*.json")}
    assert first - second == {name for name in first if "/table1_sweep-" in name}
    assert "FID lite ↓ by experiment" in Page(out.read_text()).text


def test_an_earlier_report_replaces_missing_logs_and_images(project, report, tmp_path):
    """As in a fresh clone, which has records and docs/report, but neither logs nor images."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("logs", "*.png", "*.mp4", "*.gif"))
    out = tmp_path / "out" / "index.html"
    assert command.main(arguments(copy, out, reuse=report.parent)) == 0
    assert out.read_text() == report.read_text()
    assert files_below(out.parent) == files_below(report.parent)
    assert command.main(arguments(copy, out)) == 0  # now from its own assets
    assert out.read_text() == report.read_text()
    record = copy / "results" / "smoke" / "table1_sweep.json"
    record.write_text(record.read_text().replace("torch", "jax"))
    assert command.main(arguments(copy, out)) == 0
    assert "results/smoke/table1_sweep/grid.png is missing" in out.read_text()


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_own_runs_are_shown_with_and_without_records(tmp_path, repository):
    (tmp_path / "experiments").mkdir()
    shutil.copyfile(repository / "experiments" / "table1_sweep.yaml", tmp_path / "experiments" / "table1_sweep.yaml")
    write_run(tmp_path, "faces", 0, 1.0)
    write_run(tmp_path, "larger", 0, 0.5)
    write_logs(tmp_path, Path("logs/cats/version_1"), 0.5, 0)
    write_logs(tmp_path, Path("logs/table1_sweep/version_1"), 0.5, 0)
    config = tmp_path / "dogs.yaml"
    config.write_text("model: {}\n")
    out = tmp_path / "report" / "index.html"
    assert command.main([*arguments(tmp_path, out), f"--config={config}"]) == 0
    page = Page(out.read_text())
    assert "larger scores best" in page.text
    experiments, _, runs = page.text.partition("Runs without scores")[2].partition("Runs without scores")
    assert "faces" in experiments
    assert "dogs" in experiments
    assert "800.0" in experiments
    assert linked(page, "assets/experiments/dogs-", ".yaml")
    assert "cats" in runs
    assert "version_1" in runs
    assert "version_0" not in runs  # resumed by version_1
    assert linked(page, "assets/logs/cats/version_1/config-", ".yaml")
    assert any("logs/cats/version_1/step_00000040" in image["src"] for image in page.all("img"))
    assert "logs/table1_sweep" not in out.read_text()
    config.write_text("about: {title: x, tables: 1}")
    with pytest.raises(UserError, match=r"dogs\.yaml.*tables"):
        command.main([*arguments(tmp_path, out), f"--config={config}"])


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
    (shown,) = out.parent.glob("assets/runs/smoke/table1_sweep_early-*/record.json")
    assert shown.read_text() == early.read_text()


def test_runs_of_the_same_name_do_not_replace_each_other(tmp_path, repository):
    shutil.copytree(repository / "experiments", tmp_path / "experiments")
    first = write_run(tmp_path, "table1_sweep", 0, 1.0)
    other = first.parent / "again" / first.name
    other.parent.mkdir()
    other.write_text(first.read_text().replace('"seed": 0', '"seed": 5'))
    out = tmp_path / "report" / "index.html"
    assert command.main(arguments(tmp_path, out)) == 0
    records = {path.read_text() for path in out.parent.glob("assets/runs/smoke/*/record.json")}
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


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@needs_chromium
def test_a_browser_shows_all_of_it_without_network(report, tmp_path):
    shown = tmp_path / "report"
    shutil.copytree(report.parent, shown)
    state, console, requested = look_at(shown / "index.html", tmp_path / "profile", width_px=1400, dark=False)
    assert (console, requested) == ([], [])
    assert len(state["pictures"]) > 10
    assert [width for _, width in state["videos"]] == [96, 96]
    assert 1360 < state["page_width"] == state["window_width"]  # only boxes around tables scroll horizontally
    assert state["lightness"] > 200


@needs_chromium
def test_the_committed_report_fits_on_a_phone_in_dark_mode(repository, tmp_path):
    shown = tmp_path / "report"
    shutil.copytree(repository / "docs" / "report", shown)
    state, console, requested = look_at(shown / "index.html", tmp_path / "profile", width_px=400, dark=True)
    assert (console, requested) == ([], [])
    assert len(state["pictures"]) > 50
    assert 360 < state["page_width"] == state["window_width"]
    assert state["page_height"] < 30_000
    assert state["lightness"] < 60


@needs_chromium
def test_the_browser_test_detects_faults(report, tmp_path):
    shown = tmp_path / "report"
    shutil.copytree(report.parent, shown)
    faults = '<img src="http://192.0.2.1/a.png" alt=""><script>console.error("oh");</script></main>'
    page = shown / "index.html"
    page.write_text(page.read_text().replace("</main>", faults))
    state, console, requested = look_at(page, tmp_path / "profile", width_px=800, dark=False)
    assert state["pictures"][-1] == ["http://192.0.2.1/a.png", 0]
    assert requested == ["http://192.0.2.1/a.png"]
    assert '"oh"' in console[0]


def test_a_clone_gives_the_committed_report(repository, committed_results, tmp_path):
    for name in committed_results:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, tmp_path / name)
    shutil.copytree(repository / "experiments", tmp_path / "experiments")
    out, committed = tmp_path / "report" / "index.html", repository / "docs" / "report"
    assert command.main(arguments(tmp_path, out, reuse=committed)) == 0
    remedy = "run `python -m zigma_pl report --out docs/report/index.html` and commit docs/report"
    assert out.read_text() == (committed / "index.html").read_text(), remedy
    assert files_below(out.parent / "assets") == files_below(committed / "assets"), remedy


def test_the_templates_are_installed(repository):
    setup = ConfigParser()
    setup.read(repository / "setup.cfg")
    (pattern,) = setup["options.package_data"]["zigma_pl.suite.report"].split()
    installed = {path.name for path in (repository / "zigma_pl" / "suite" / "report").glob(pattern)}
    assert installed == {path.name for path in (repository / "zigma_pl" / "suite" / "report" / "templates").iterdir()}
