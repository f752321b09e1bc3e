import os
import signal
import time

import lightning as L
import pytest
import torch
from kills_driver import build, train, trainer_for

from zigma_pl.callbacks import preemption
from zigma_pl.callbacks.preemption import Preempted, Preemption
from zigma_pl.checkpoints.newest import newest_checkpoint
from zigma_pl.data import Digits
from zigma_pl.errors import UserError

HANDLERS = {number: signal.getsignal(number) for number in preemption.SIGNALS}


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
    ("hook", "nth", "step"),
    [
        ("on_train_batch_start", 5, 5),
        ("on_after_backward", 4, 4),  # saved anyhow
        ("on_validation_batch_start", 1, 3),  # not saved yet: the validation is finished first
        ("on_validation_batch_start", 3, 6),  # saved: at once
        ("on_validation_end", 1, 3),
        ("on_train_start", 1, 1),
        ("on_fit_start", 1, 1),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_ends_and_the_run_goes_on_exactly(tmp_path, whole, hook, nth, step, number):
    with pytest.raises(Preempted, match=f"by {number.name} after step {step}"):
        train(tmp_path, 8, Preemption(), SendsSignal(hook, number, nth), val_check_interval=3)
    newest = newest_checkpoint(tmp_path / "checkpoints").path
    assert newest.name == f"step_{step:08d}.ckpt"
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve() == newest.resolve()
    train(tmp_path, 8, Preemption(), val_check_interval=3)
    parts = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])
    assert torch.equal(whole["random_states"][0]["torch"], parts["random_states"][0]["torch"])
    assert {number: signal.getsignal(number) for number in preemption.SIGNALS} == HANDLERS


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
    monkeypatch.setattr(preemption, "SECONDS_OF_ONE_SIGNAL", 0.01)
    with pytest.raises(Ended, match=str(128 + term)):
        train(tmp_path / "later", 8, Preemption(), SendsSignals(term, term, seconds=0.02))


def test_other_commands_keep_the_meaning_of_signals(tmp_path):
    class Looks(L.Callback):
        def on_validation_batch_start(self, *_):
            self.handler = signal.getsignal(signal.SIGUSR1)

    looks = Looks()
    trainer_for(tmp_path, 1, Preemption(), looks).validate(build(), datamodule=Digits(batch_size=90), verbose=False)
    assert looks.handler == HANDLERS[signal.SIGUSR1]


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
