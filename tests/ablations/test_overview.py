import io
import json
from pathlib import Path

import pytest

from zigma_pl.suite.runs.local import Job, State
from zigma_pl.suite.runs.overview import Overview, duration
from zigma_pl.suite.runs.plan import Places, Run
from zigma_pl.suite.runs.rows import Row


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def jobs(in_tmp):
    places = Places(Path("logs"), Path("results"))
    return [Job(Run(Row(Path(f"table1_{name}.yaml")), "smoke", 0, (), places)) for name in ("a", "long", "c")]


def progress(job, **values):
    job.run.log_folder.mkdir(parents=True, exist_ok=True)
    given = {"phase": "training", "done": 1200, "total": 4500, "images_per_second": 580.25, "seconds_left": 3725}
    job.run.progress.write_text(json.dumps({**given, **values}))


def test_plain_output_has_a_line_for_each_change(jobs):
    stream = io.StringIO()
    overview = Overview(jobs, stream)
    jobs[0].state = State.TRAINING
    progress(jobs[0])
    overview.show()
    overview.show()
    jobs[0].state = State.SCORING
    progress(jobs[0], phase="sampling", done=32, total=64, images_per_second=None, seconds_left=None)
    overview.show()
    jobs[0].state = State.DONE
    overview.show()
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert lines == [
        ["table1_a", "training", "1,200/4,500", "580.2", "1:02:05"],
        ["table1_a", "sampling", "32/64"],
        ["table1_a", "done"],
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_is_drawn_in_place(jobs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    overview = Overview(jobs, stream)
    overview.show()
    assert stream.getvalue().count("\n") == 5  # headings, three rows, sums
    assert "3 waiting" in stream.getvalue()
    begin = stream.tell()
    overview.show()
    assert stream.getvalue()[begin:].startswith("\x1b[5A")


def test_rows_that_are_done_give_way_where_the_terminal_is_small(jobs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "5")
    jobs[0].state, jobs[1].state, jobs[2].state = State.DONE, State.WAITING, State.FAILED
    stream = Terminal()
    Overview(jobs, stream).show()
    shown = stream.getvalue()
    assert "table1_c" in shown
    assert "table1_long" in shown
    assert "table1_a" not in shown
    assert "1 waiting, 1 done, 1 failed" in shown
    assert all(len(line.replace("\x1b[2K", "")) < 60 for line in shown.splitlines())


@pytest.mark.parametrize(("seconds", "text"), [(3, "0:03"), (59.6, "1:00"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
