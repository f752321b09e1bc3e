"""Two processes and two nodes do what one process does; a bad number on one of them is skipped by both."""

import csv
import json
from pathlib import Path

import pytest
import torch
from distributed import two_processes
from distributed.few_pictures import CASES, evaluate
from distributed.training_run import MUON, build, train
from processes import Processes, command_line, of_lightning, of_torchrun

GOLDEN = Path(__file__).parents[1] / "golden" / "digits.json"
OPTIONS = {
    "model.backbone.init_args.width": 16,
    "model.backbone.init_args.depth": 2,
    # The recipe of the stored losses. Muon would amplify rounding errors of small gradients.
    "model.backbone.init_args.mixers": "zigma_pl.mixers.Mamba",
    "model.backbone.init_args.mixers.init_args.state_size": 8,
    "model.optimizer": "torch.optim.AdamW",
    "model.optimizer.init_args.lr": 3e-3,
    "model.optimizer.init_args.weight_decay": 0,
    "model.lr_schedule": "zigma_pl.optimizers.Constant",
    "model.lr_schedule.init_args.warmup_steps": 50,
    "ema.decay": 0.99,
    "model.sampler.init_args.num_steps": 2,
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 20,
    "trainer.limit_val_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.logger.class_path": "lightning.pytorch.loggers.CSVLogger",
    "checkpoint.every_n_train_steps": 20,
    "preview.num_samples": 0,
}


def fit(repository, strategy=None, **options):
    """The arguments of a training run on digits."""
    configs = [repository / "experiments" / "digits.yaml"]
    if strategy:
        configs.append(repository / "configs" / "strategy" / f"{strategy}.yaml")
    given = OPTIONS | {name.replace("__", ".init_args."): value for name, value in options.items()}
    return ["fit", *(f"--config={path}" for path in configs), *(f"--{n}={v}" for n, v in given.items())]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which one process, two processes and two nodes have trained, all through the command line."""
    folder, repository = tmp_path_factory.mktemp("runs"), Path(__file__).parents[2]

    def arguments(name, batch_size, strategy=None, **trainer):
        sizes = {"data__batch_size": batch_size, "trainer.logger__name": name}
        return fit(repository, strategy, **sizes, **{f"trainer.{key}": value for key, value in trainer.items()})

    one = arguments("one", 8)
    two = arguments("two", 2, "ddp", devices=2, accumulate_grad_batches=2)
    nodes = arguments("nodes", 4, "ddp", devices=1, num_nodes=2)
    started = [
        Processes("one", folder, (command_line, *one)),
        Processes("two", folder, *[(command_line, *two)] * 2, environments=of_lightning(2)),
        Processes("nodes", folder, *[(command_line, *nodes)] * 2, environments=of_torchrun(2)),
    ]
    for processes in started:
        processes.wait()
    return folder


def trace(folder, name):
    """Loss and gradient norm of each step."""
    with (folder / "logs" / name / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return torch.tensor([[float(row[f"train/{column}"]) for column in ("loss", "gradient_norm")] for row in rows])


@pytest.mark.parametrize("name", ["two", "nodes"])
def test_losses_do_not_depend_on_how_the_batch_is_split(runs, name):
    one = trace(runs, "one")
    assert one.shape == (20, 2)
    torch.testing.assert_close(trace(runs, name), one, rtol=0, atol=1e-6)


def test_losses_are_the_golden_ones(runs):
    golden = json.loads(GOLDEN.read_text())
    expected = torch.tensor([golden["loss"], golden["gradient_norm"]]).T
    torch.testing.assert_close(trace(runs, "one"), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["two", "nodes"])
def test_weights_do_not_depend_on_how_the_batch_is_split(runs, name):
    one, other = (
        torch.load(runs / "logs" / run / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("one", name)
    )
    for key in ("state_dict", "current_model_state"):
        for weight in one[key]:
            torch.testing.assert_close(other[key][weight], one[key][weight], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have run two_processes.main, and what each has found."""
    folder = tmp_path_factory.mktemp("pair")
    Processes("pair", folder, *[(two_processes.main, folder)] * 2, environments=of_lightning(2)).wait()
    return folder, [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The trace of one process with the same batches."""
    return torch.tensor(train(tmp_path_factory.mktemp("alone"))[1].trace())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_both_processes_log_the_whole_loss_and_gradient(pair, alone, strategy):
    for found in pair[1]:
        torch.testing.assert_close(torch.tensor(found[strategy]), alone, rtol=0, atol=1e-6)


def test_muon_takes_the_same_steps_on_one_process_on_two_and_sharded(pair, tmp_path):
    alone = torch.tensor(train(tmp_path, build(optimizer=MUON))[1].trace())
    for found in pair[1]:
        for strategy in ("ddp", "fsdp"):
            torch.testing.assert_close(torch.tensor(found[f"muon {strategy}"]), alone, rtol=0, atol=1e-5)
        assert found["muon resumed"] == found["muon fsdp"][3:]


def test_sharded_average_is_validated_as_any_other(pair):
    ddp, fsdp = (pair[1][0][f"validation of {strategy}"] for strategy in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp, rel=1e-6)


@pytest.mark.parametrize("num_pictures", CASES)
def test_evaluation_of_fewer_pictures_than_processes_is_that_of_one_process(pair, tmp_path, num_pictures):
    """Kind: collective calls that a process without data never reaches."""
    expected = evaluate(tmp_path, num_pictures)
    for found in pair[1]:
        assert found[f"few {num_pictures}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("what", "named"), [("data", "validation split"), ("options", "option model.learning_rate")])
def test_processes_that_differ_are_refused_by_both(pair, what, named):
    """Kind: what has to be alike on every machine is compared."""
    first, second = (found[f"unequal {what}"] for found in pair[1])
    assert first == second
    assert first.startswith(f"{named}: process 0 has")


def test_snapshots_are_those_of_one_process(pair, tmp_path):
    train(tmp_path)
    for name in ("ddp", "fsdp", "fsdp-resumed"):
        paths = sorted((pair[0] / name / "snapshots").iterdir())
        assert len(paths) == 2 if name == "fsdp-resumed" else 4
        for path in paths:
            whole, own = (
                torch.load(one / path.name, weights_only=True) for one in (tmp_path / "snapshots", path.parent)
            )
            assert own["state_dict"].keys() == whole["state_dict"].keys()
            for parameter, weight in whole["state_dict"].items():
                torch.testing.assert_close(own["state_dict"][parameter], weight, rtol=2e-3, atol=1e-5)


def test_sharded_parameters_are_nowhere_whole(pair, alone):
    whole = torch.load(pair[0] / "fsdp" / "last.ckpt", weights_only=True)["state_dict"]
    sizes = [found["local_parameters"] for found in pair[1]]
    assert sum(sizes) == sum(weight.numel() for weight in whole.values())
    assert max(sizes) < 0.6 * sum(sizes)


def test_sharded_checkpoint_is_that_of_one_process(pair, alone, tmp_path):
    folder, found = pair
    resumed = torch.tensor(found[0]["fsdp-resumed"])
    torch.testing.assert_close(resumed, alone[3:], rtol=0, atol=1e-6)
    _, remember = train(tmp_path, ckpt_path=folder / "fsdp" / "step=3.ckpt")
    torch.testing.assert_close(torch.tensor(remember.trace()), alone[3:], rtol=0, atol=1e-6)
    ends = [torch.load(path / "last.ckpt", weights_only=True) for path in (tmp_path, folder / "fsdp-resumed")]
    for key in ("state_dict", "current_model_state"):
        for name, weight in ends[0][key].items():
            torch.testing.assert_close(ends[1][key][name], weight, rtol=1e-4, atol=1e-6)
    for width, averages in ends[0]["power_averages"].items():
        for name, average in averages.items():
            torch.testing.assert_close(ends[1]["power_averages"][width][name], average, rtol=1e-4, atol=1e-6)


def test_a_bad_number_on_one_process_is_skipped_by_both(pair):
    folder, found = pair
    assert [process["skipped"] for process in found] == [[0, 0, 1, 1, 2, 2]] * 2
    first, second = (torch.load(folder / f"weights{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) and first[name].isfinite().all() for name in first)
    average = torch.load(folder / "spoiled" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in average.values())


def test_too_many_bad_numbers_stop_both_with_what_reproduces_them(pair):
    folder, found = pair
    dump = folder / "stopped" / "non_finite_step_00000004"
    for process in found:
        for part in ("2 steps", "step 4 (process 1, first in patch_embedding.projection)", str(dump)):
            assert part in process["error"]
    good, bad = (json.loads((dump / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert (good["sample_ids"], bad["sample_ids"]) == ([[24, 25, 26, 27]], [[28, 29, 30, 31]])
    assert good["first_non_finite_output"] is None
    assert "backbone.blocks.0.mixer.A_log" in bad["non_finite_gradients"]
    assert all(row["share_not_finite"] == 0 and row["min"] <= row["max"] for row in good["outputs"])
