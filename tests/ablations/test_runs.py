"""States, resuming, failures and interruptions of the runner, with fake training and scoring."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.suite.runs.experiment_files import find_experiments
from zigma_pl.suite.runs.local import LocalRunner, RunState, TrackedRun, run_lock, track
from zigma_pl.suite.runs.plan import OutputFolders, plan

TABLE1 = ("--table", "1")


def test_experiments_are_trained_and_scored_once(fakes, capsys):
    assert fakes.run(*TABLE1) == 0
    assert fakes.calls() == [
        "fit table1_a",
        "test table1_a from end.ckpt",
        "fit table1_b",
        "test table1_b from end.ckpt",
    ]
    out = capsys.readouterr().out
    assert "2 runs at scale smoke: 0 finished before, 2 to do" in out
    assert [line.split()[:2] for line in out.splitlines()[1:]][-1] == ["table1_b", "done"]
    assert Path("results/smoke/table1_a.json").is_file()
    assert fakes.run(*TABLE1) == 0
    assert fakes.calls() == []
    assert "2 finished before, 0 to do" in capsys.readouterr().out


def test_experiments_of_no_table_are_left_out_where_the_scale_has_no_file_for_them(fakes):
    assert fakes.run() == 0
    assert [call for call in fakes.calls() if call.startswith("fit")] == [
        "fit table1_a",
        "fit table1_b",
        "fit table1x_a",
    ]


def test_a_failed_experiment_is_shown_and_the_next_one_runs(fakes, capsys):
    fakes.behave(table1_a={"fit": "fail"})
    assert fakes.run(*TABLE1) == 1
    assert fakes.calls() == ["fit table1_a", "fit table1_b", "test table1_b from end.ckpt"]
    err = capsys.readouterr().err
    assert "error: the picture 3.jpg is broken" in err
    assert "output.txt" in err
    assert err.splitlines()[-1] == "error: 1 of 2 runs failed: table1_a"
    fakes.behave()
    assert fakes.run(*TABLE1) == 0
    assert fakes.calls() == ["fit table1_a", "test table1_a from end.ckpt"]


def test_an_experiment_whose_scoring_failed_is_not_trained_again(fakes):
    fakes.behave(table1_a={"test": "fail"})
    assert fakes.run("--names", "table1_a") == 1
    fakes.behave()
    fakes.calls()
    assert fakes.run("--names", "table1_a") == 0
    assert fakes.calls() == ["test table1_a from end.ckpt"]


def test_scoring_without_a_record_is_a_failure(fakes, capsys):
    fakes.behave(table1_a={"test": "no_record"})
    assert fakes.run("--names", "table1_a") == 1
    assert "table1_a.json" in capsys.readouterr().err


def interrupt_when(path, number):
    def wait():
        while not Path(path).exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait).start()


@pytest.fixture
def interruptible():
    """Let an interrupt raise KeyboardInterrupt, also where the tests run in the background, where it is ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_experiment_resumes_from_its_last_checkpoint(fakes, capsys, number):
    fakes.behave(table1_a={"fit": "hang"})
    interrupt_when("hangs", number)
    started = time.monotonic()
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            fakes.run(*TABLE1)
    else:
        assert fakes.run(*TABLE1) == 75
    assert time.monotonic() - started < 15  # the process was told to stop
    assert "table1_a  stopped" in capsys.readouterr().out
    assert fakes.calls() == ["fit table1_a"]
    fakes.behave()
    assert fakes.run(*TABLE1) == 0
    assert fakes.calls()[:2] == ["fit table1_a from last", "test table1_a from end.ckpt"]


def test_a_preempted_experiment_is_no_failure(fakes, capsys):
    fakes.behave(table1_a={"fit": "preempted"})
    assert fakes.run(*TABLE1) == 75
    assert fakes.calls() == ["fit table1_a", "fit table1_b", "test table1_b from end.ckpt"]
    assert "failed" not in capsys.readouterr().err
    fakes.behave()
    assert fakes.run(*TABLE1) == 0
    assert fakes.calls() == ["fit table1_a from last", "test table1_a from end.ckpt"]


def test_a_cut_off_checkpoint_is_passed_over(fakes):
    run = table1_runs()[0]
    folder = run.log_folder / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "whole.ckpt").write_bytes(Path("middle.pt").read_bytes())
    (folder / "cut.ckpt").write_bytes(Path("end.pt").read_bytes()[:100])
    (folder / "last.ckpt").symlink_to("gone.ckpt")
    assert run.checkpoint() == folder / "whole.ckpt"
    assert not run.is_trained()


def table1_runs(**options):
    folders = OutputFolders(Path("logs/smoke"), Path("results/smoke"))
    experiments = find_experiments(Path("experiments"), options.pop("table", "1"))
    return plan(experiments, "smoke", [0], scales=Path("scales"), folders=folders, **options)


def test_own_configs_are_run_as_they_are_over_a_base(fakes, capsys):
    fakes.write("mine/small.yaml", "model: {backbone: {init_args: {depth: 2}}}\n")
    fakes.write("mine/deep.yaml", "model: {backbone: {init_args: {depth: 4}}}\ntrainer: {max_steps: 1}\n")
    fakes.write(
        "base.yaml", "trainer: {max_steps: 2}\ndata: {class_path: zigma_pl.data.Digits}\nscorer: {metrics: []}\n"
    )
    own = ["--experiments=mine", "--scale=own", "--base=base.yaml"]
    assert fakes.run(*own, "--names", "small") == 0
    assert fakes.calls() == ["fit small", "test small from end.ckpt"]
    assert capsys.readouterr().out.splitlines()[-1] == "small: validation_loss 0.125 (results/own/small.json)"
    assert not Path("docs").exists()  # the tables are of the shipped experiments
    experiments = find_experiments(Path("mine"))
    runs = plan(
        experiments,
        "own",
        [0],
        scales=Path("scales"),
        folders=OutputFolders(Path("logs"), Path("results")),
        base_files=[Path("base.yaml")],
    )
    assert [(run.name, run.num_steps, run.config["model"]["backbone"]["init_args"]["depth"]) for run in runs] == [
        ("deep", 1, 4),
        ("small", 2, 2),
    ]
    with pytest.raises(UserError, match="--experiments nowhere"):
        fakes.run("--experiments=nowhere", "--scale=own")


def test_a_changed_configuration_is_said_and_run_only_when_asked(fakes, capsys):
    assert fakes.run("--names", "table1_a") == 0
    fakes.calls()
    fakes.write("scales/smoke.yaml", "scorer: {num_samples: 16, metrics: [fid_lite]}\nema: {decay: 0.5}\n")
    capsys.readouterr()
    assert fakes.run("--names", "table1_a") == 0
    assert fakes.calls() == []
    out = capsys.readouterr().out
    assert "ema.decay absent -> 0.5" in out
    assert fakes.run("--names", "table1_a", "--again") == 0
    assert fakes.calls() == ["fit table1_a", "test table1_a from end.ckpt"]
    assert fakes.run("--names", "table1_a") == 0
    assert fakes.calls() == []


def test_a_change_of_the_scoring_alone_does_not_train_again(fakes):
    assert fakes.run("--names", "table1_a") == 0
    fakes.calls()
    fakes.write("scales/smoke.yaml", "scorer: {num_samples: 32, metrics: [fid_lite]}\nmodel: {guidance: {scale: 2}}\n")
    assert fakes.run("--names", "table1_a", "--again") == 0
    assert fakes.calls() == ["test table1_a from end.ckpt"]


def test_an_experiment_without_samples_can_be_scored_completely_later(fakes, repository):
    loss_only = str(repository / "configs" / "loss_only.yaml")
    assert fakes.run("--names", "table1_b", "--config", loss_only) == 0
    assert fakes.calls() == ["fit table1_b", "test table1_b from end.ckpt"]
    assert fakes.run("--names", "table1_b") == 0
    assert fakes.calls() == []
    assert fakes.run("--names", "table1_b", "--again") == 0
    assert fakes.calls() == ["test table1_b from end.ckpt"]


def test_a_half_written_record_is_said_and_made_again(fakes, capsys):
    assert fakes.run("--names", "table1_a") == 0
    record = Path("results/smoke/table1_a.json")
    record.write_text(record.read_text()[:50])
    fakes.calls()
    capsys.readouterr()
    assert fakes.run("--names", "table1_a") == 0
    assert fakes.calls() == ["test table1_a from end.ckpt"]
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be used" in line]
    assert len(said) == 1
    assert "results/smoke/table1_a.json" in said[0]


def test_a_record_that_another_command_wrote_is_kept(fakes, capsys):
    fakes.write("results/smoke/table1_a.json", Path(__file__).with_name("foreign_record.json").read_text())
    assert fakes.run("--names", "table1_a") == 0
    assert fakes.calls() == []
    assert "results/smoke/table1_a.json" in capsys.readouterr().out


def test_seeds_have_records_and_logs_of_their_own(fakes):
    assert fakes.run("--names", "table1_a", "--seeds", "0", "1") == 0
    assert {path.name for path in Path("results/smoke").glob("*.json")} == {"table1_a.json", "table1_a_seed1.json"}
    assert {path.name for path in Path("logs/smoke").iterdir()} == {"table1_a", "table1_a_seed1"}


def test_a_further_file_is_laid_over_all(fakes):
    fakes.write("mine.yaml", "data: {init_args: {root: elsewhere}}\n")
    plain, mine = table1_runs()[0], table1_runs(extra_files=[Path("mine.yaml")])[0]
    assert mine.fit_command()[mine.fit_command().index("mine.yaml") - 1] == "--config"
    assert mine.log_folder != plain.log_folder


def test_an_experiment_without_an_end_is_refused(fakes):
    fakes.write("scales/smoke.yaml", "trainer: {max_steps: -1}\n")
    with pytest.raises(UserError, match="max_steps"):
        table1_runs()


def test_an_experiment_that_another_process_runs_is_left_to_it(fakes, capsys):
    with run_lock(table1_runs()[0].log_folder) as lock:
        assert lock is not None
        assert fakes.run(*TABLE1) == 0
    assert fakes.calls() == ["fit table1_b", "test table1_b from end.ckpt"]
    assert "another process runs it" in capsys.readouterr().out


def test_an_experiment_that_was_done_meanwhile_is_not_repeated(fakes):
    stale = [track(run, again=False) for run in table1_runs()]
    assert fakes.run(*TABLE1) == 0
    fakes.calls()
    list(LocalRunner(stale).run())
    assert fakes.calls() == []
    assert all(tracked.state is RunState.DONE for tracked in stale)


RUNNER = """
import os, subprocess, sys
from pathlib import Path
from zigma_pl.suite.runs.local import run_lock
with run_lock(Path(sys.argv[1])) as lock:
    subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=(lock,))
    os.kill(os.getpid(), 9)
"""


def test_the_lock_outlives_a_killed_runner_while_its_process_runs(tmp_path):
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], stdin=subprocess.PIPE)
    assert runner.wait() == -signal.SIGKILL
    with run_lock(tmp_path) as second:
        assert second is None
    runner.stdin.close()  # ends the process that the runner started
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with run_lock(tmp_path) as third:
            if third is not None:
                return
        time.sleep(0.05)
    pytest.fail("the lock is still held")


def test_several_experiments_run_at_a_time(fakes):
    fakes.behave(table1_a={"fit": "hang"})
    tracked_runs = [track(run, again=False) for run in table1_runs()]
    looks = LocalRunner(tracked_runs, num_workers=2).run()
    for _ in looks:
        if tracked_runs[1].state is RunState.DONE:
            break
    assert tracked_runs[0].state is RunState.TRAINING
    looks.close()
    assert tracked_runs[0].state is RunState.STOPPED


def test_an_error_of_ours_is_not_taken_for_a_failed_experiment(fakes, monkeypatch):
    runs = table1_runs()
    monkeypatch.setattr(type(runs[0]), "is_trained", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(LocalRunner([TrackedRun(runs[0])]).run())
