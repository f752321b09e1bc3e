import io
import json
from pathlib import Path

import pytest

from zigma_pl.suite.runs.experiment_files import ExperimentFile
from zigma_pl.suite.runs.local import RunState, TrackedRun
from zigma_pl.suite.runs.overview import Overview, duration
from zigma_pl.suite.runs.plan import OutputFolders, Run


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tracked_runs(in_tmp):
    folders = OutputFolders(Path("logs"), Path("results"))
    return [
        TrackedRun(Run(ExperimentFile(Path(f"table1_{name}.yaml")), "smoke", 0, (), folders))
        for name in ("a", "long", "c")
    ]


def progress(tracked, **values):
    tracked.run.log_folder.mkdir(parents=True, exist_ok=True)
    given = {"phase": "training", "done": 1200, "total": 4500, "images_per_second": 580.25, "seconds_left": 3725}
    tracked.run.progress.write_text(json.dumps({**given, **values}))


def test_plain_output_has_a_line_for_each_change(tracked_runs):
    stream = io.StringIO()
    overview = Overview(tracked_runs, stream)
    tracked_runs[0].state = RunState.TRAINING
    progress(tracked_runs[0])
    overview.show()
    overview.show()
    tracked_runs[0].state = RunState.SCORING
    progress(tracked_runs[0], phase="sampling", done=32, total=64, images_per_second=None, seconds_left=None)
    overview.show()
    tracked_runs[0].state = RunState.DONE
    overview.show()
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert lines == [
        ["table1_a", "training", "1,200/4,500", "580.2", "1:02:05"],
        ["table1_a", "sampling", "32/64"],
        ["table1_a", "done"],
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_is_updated_in_place(tracked_runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    overview = Overview(tracked_runs, stream)
    overview.show()
    assert stream.getvalue().count("\n") == 5  # headings, three runs, totals
    assert "3 waiting" in stream.getvalue()
    begin = stream.tell()
    overview.show()
    assert stream.getvalue()[begin:].startswith("\x1b[5A")


def test_experiments_that_are_done_give_way_where_the_terminal_is_small(tracked_runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "5")
    tracked_runs[0].state, tracked_runs[1].state, tracked_runs[2].state = (
        RunState.DONE,
        RunState.WAITING,
        RunState.FAILED,
    )
    stream = Terminal()
    Overview(tracked_runs, stream).show()
    shown = stream.getvalue()
    assert "table1_c" in shown
    assert "table1_long" in shown
    assert "table1_a" not in shown
    assert "1 waiting, 1 done, 1 failed" in shown
    assert all(len(line.replace("\x1b[2K", "")) < 60 for line in shown.splitlines())


@pytest.mark.parametrize(("seconds", "text"), [(3, "0:03"), (59.6, "1:00"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
