"""Kind: signals that are ignored, lose what was trained, or end with another status than they should."""

import os
import signal
import time

import lightning as L
import pytest
import torch
from kills_driver import build, train, trainer_for

from zigma_pl.core import signals
from zigma_pl.core.errors import UserError
from zigma_pl.core.signals import ended_by_signals
from zigma_pl.data import Digits
from zigma_pl.training.callbacks.preemption import Preempted, Preemption
from zigma_pl.training.checkpoints.newest import newest_checkpoint

HANDLERS = {number: signal.getsignal(number) for number in signals.SIGNALS}


class SendsSignal(L.Callback):
    """Sends this process a signal at a hook, the n-th time that it is called."""

    def __init__(self, hook, number, nth=1):
        self.left = nth

        def send(trainer, *_, **__):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 8, val_check_interval=3)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


# Checkpoints are due at 2, 4, 6, 8, validations at 3 and 6.
@pytest.mark.parametrize(
    ("hook", "nth", "step", "number", "status"),
    [
        ("on_train_batch_start", 5, 5, signal.SIGTERM, 75),
        ("on_train_batch_start", 5, 5, signal.SIGINT, 130),
        ("on_train_batch_start", 5, 5, signal.SIGHUP, 129),
        ("on_after_backward", 4, 4, signal.SIGUSR1, 75),  # saved anyhow
        ("on_validation_batch_start", 1, 3, signal.SIGTERM, 75),  # not saved yet: the validation is finished first
        ("on_validation_batch_start", 3, 6, signal.SIGTERM, 75),  # saved: at once
        ("on_validation_end", 1, 3, signal.SIGINT, 130),
        ("on_train_start", 1, 1, signal.SIGUSR1, 75),
        ("on_fit_start", 1, 1, signal.SIGTERM, 75),
    ],
)
def test_a_signal_saves_ends_and_the_run_goes_on_exactly(tmp_path, whole, hook, nth, step, number, status):
    with pytest.raises(Preempted, match=f"by {number.name} after step {step}") as ended:
        train(tmp_path, 8, Preemption(), SendsSignal(hook, number, nth), val_check_interval=3)
    assert ended.value.status == status
    newest = newest_checkpoint(tmp_path / "checkpoints").path
    assert newest.name == f"step_{step:08d}.ckpt"
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve() == newest.resolve()
    train(tmp_path, 8, Preemption(), val_check_interval=3)
    parts = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])
    assert torch.equal(whole["random_states"][0]["torch"], parts["random_states"][0]["torch"])
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == HANDLERS


def test_a_validation_is_cut_short_where_its_step_is_saved(tmp_path):
    batches = SendsSignal("on_validation_batch_end", signal.SIGUSR1, 1)
    with pytest.raises(Preempted):
        train(tmp_path, 8, batches, Preemption(), val_check_interval=2)
    assert batches.left == 0  # of two batches one


def test_accumulated_gradients_are_not_thrown_away(tmp_path):
    sends = SendsSignal("on_train_batch_start", signal.SIGTERM, 5)
    with pytest.raises(Preempted, match="after step 2"):
        train(tmp_path, 8, Preemption(), sends, accumulate_grad_batches=3)
    assert sends.left == -1  # the step's other micro-batch


def test_after_the_last_step_training_just_ends(tmp_path):
    trainer = train(tmp_path, 3, Preemption(), SendsSignal("on_after_backward", signal.SIGTERM, 3))
    assert trainer.state.finished


class Ended(BaseException):
    """In the place of the end of the process."""


class SendsSignals(L.Callback):
    """Sends this process signals in the second step, one so many seconds after the other."""

    def __init__(self, *numbers, seconds=0.0):
        self.numbers, self.seconds = numbers, seconds

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)
                time.sleep(self.seconds)


def test_a_second_signal_ends_at_once_and_one_that_came_twice_does_not(tmp_path, monkeypatch):
    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    term, user = signal.SIGTERM, signal.SIGUSR1
    with pytest.raises(Preempted):
        train(tmp_path / "twice", 8, Preemption(), SendsSignals(term, term))
    with pytest.raises(Ended, match=str(128 + term)):
        train(tmp_path / "other", 8, Preemption(), SendsSignals(user, term))
    monkeypatch.setattr(signals, "SECONDS_OF_ONE_SIGNAL", 0.01)
    with pytest.raises(Ended, match=str(128 + term)):
        train(tmp_path / "later", 8, Preemption(), SendsSignals(term, term, seconds=0.02))


@pytest.mark.parametrize("number", signals.SIGNALS)
@pytest.mark.parametrize(
    ("command", "hook"),
    [
        ("validate", "on_validation_batch_start"),
        ("test", "on_test_batch_start"),
        ("predict", "on_predict_batch_start"),
    ],
)
def test_other_commands_end_at_once(tmp_path, command, hook, number):
    ends = []

    class Ends(L.Callback):
        def on_exception(self, *_):
            ends.append("on_exception")

        def on_validation_batch_end(self, *_):
            ends.append("too late")

        on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    trainer = trainer_for(tmp_path, 1, Preemption(), SendsSignal(hook, number), Ends())
    with pytest.raises(SystemExit) as ended, ended_by_signals():
        getattr(trainer, command)(build(), datamodule=Digits(batch_size=90))
    assert ended.value.code == 128 + number
    assert ends == ["on_exception"]
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == HANDLERS


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As SIGHUP is in a run that nohup has started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            trainer = train(tmp_path, 2, Preemption(), SendsSignal("on_train_start", signal.SIGHUP))
        assert trainer.state.finished
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_do_not_end_by_the_signal_of_their_group(tmp_path):
    class SignalsWorkers(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                workers = trainer.train_dataloader._iterator._workers
                assert workers
                for worker in workers:
                    os.kill(worker.pid, signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)

    trainer = trainer_for(tmp_path, 8, Preemption(), SignalsWorkers())
    with pytest.raises(Preempted, match="after step 3"):
        trainer.fit(build(), datamodule=Digits(batch_size=4, num_workers=1))


def test_wrong_options_and_a_missing_checkpoint_callback_are_named(tmp_path):
    with pytest.raises(UserError, match=r"preemption\.check_every_n_steps"):
        Preemption(check_every_n_steps=0)
    trainer = L.Trainer(
        logger=False, callbacks=[Preemption(), SendsSignal("on_train_start", signal.SIGTERM)], max_steps=2
    )
    with pytest.raises(UserError, match=r"needs .*Checkpoint"):
        trainer.fit(build(), datamodule=Digits(batch_size=4))
