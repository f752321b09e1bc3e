import configparser
import contextlib
import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from zigma_pl.cli import lightning_cli
from zigma_pl.cli import main as command_line
from zigma_pl.cli.main import COMMANDS, main
from zigma_pl.suite.runs.composed import compose, differences
from zigma_pl.training.module import GenerativeModule

ROWS = ["sweep", "zigzag1", "zigzag2", "zigzag8"]
TINY = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--model.sampler.init_args.num_steps=2",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=2",
]


@pytest.fixture
def digits(repository):
    return ["--config", str(repository / "experiments" / "digits.yaml")]


@pytest.fixture
def table1(repository):
    return ["--config", str(repository / "experiments" / "table1_zigzag8.yaml")]


@pytest.fixture
def smoke(repository):
    return ["--config", str(repository / "configs" / "scale" / "smoke.yaml")]


def run(arguments):
    """Exit status of a command line, also where the option parser ends the program itself."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def scalars(log_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_folder)).Reload()
    return set(events.Tags()["scalars"]), set(events.Tags()["images"])


def test_digits_train_resume_and_sample(digits, in_tmp, monkeypatch, capsys):
    assert run(["fit", *digits, *TINY, "--preview.num_samples=10"]) == 0
    told = capsys.readouterr().out
    log = in_tmp / "logs" / "digits" / "version_0"
    curves, images = scalars(log)
    expected = {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "train/images_per_second",
        "validation/loss",
        "validation/velocity_loss",
    }
    assert expected <= curves
    assert images == {"samples"}
    assert (log / "previews" / "step_00000004.png").is_file()
    last = log / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    written = yaml.safe_load((log / "config.yaml").read_text())
    assert written["trainer"]["max_steps"] == 4
    backbone = written["model"]["backbone"]["init_args"]
    assert (backbone["in_channels"], backbone["latent_height"], backbone["num_classes"]) == (1, 8, 10)  # of the data

    for path in (log, last, log / "previews" / "step_00000004.png"):
        assert f": {path.relative_to(in_tmp)}\n" in told

    module = GenerativeModule.load_from_checkpoint(last, map_location="cpu")
    assert module.backbone.config["width"] == 16

    with monkeypatch.context() as patched:  # resume as on a GPU
        patched.setattr(lightning_cli, "default_precision", lambda options: "bf16-mixed")
        assert (
            run(["fit", *digits, *TINY, "--trainer.max_steps=6", "--preview.num_samples=0", "--ckpt_path", str(last)])
            == 0
        )
    resumed = in_tmp / "logs" / "digits" / "version_1"
    assert torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert yaml.safe_load((resumed / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    assert written["trainer"]["precision"] is None

    printed = shlex.split(told.strip().splitlines()[-1].partition("python -m zigma_pl ")[2])  # how to sample
    sampling = ["--data.init_args.num_predict_samples=12", "--samples.num_columns=4", "--model.guidance.scale=3.0"]
    assert run([*printed, *sampling]) == 0
    table = json.loads((in_tmp / "samples" / "samples.json").read_text())
    assert table["guidance"]["scale"] == 3.0  # from the command line, not from the run
    assert [row["class_id"] for row in table["samples"]] == [*range(10), 0, 1]
    assert table["num_network_calls"] == 4  # Heun, two steps
    with Image.open(in_tmp / "samples" / table["samples"][11]["file"]) as picture:
        assert picture.size == (8, 8)
    assert "samples/grid.png" in capsys.readouterr().out

    wider = [*digits, *TINY, "--model.backbone.init_args.width=32"]
    assert run(["predict", *wider, "--ckpt_path", str(last)]) == 1
    assert "does not match this model" in capsys.readouterr().err


@pytest.mark.parametrize("row", ROWS)
def test_table1_rows_differ_only_in_the_scan(row, repository):
    def load(name):
        return compose([repository / "experiments" / f"table1_{name}.yaml"])

    reference, config = load("zigzag8"), load(row)
    scan = config["model"]["backbone"]["init_args"].pop("scan")
    reference["model"]["backbone"]["init_args"].pop("scan")
    assert config == reference
    expected = {"scheme": "sweep" if row == "sweep" else "zigzag", "num_orders": int(re.sub(r"\D", "", row) or 1)}
    assert scan == expected


@pytest.mark.parametrize("row", ROWS)
def test_table1_at_512_changes_the_size_alone(row, repository):
    at_256, at_512 = (compose([repository / "experiments" / f"table1_{row}{size}.yaml"]) for size in ("", "_512"))
    assert differences(at_256, at_512) == [
        "data.init_args.batch_size 32 -> 8",
        "data.init_args.image_size_px 256 -> 512",
    ]


def test_classes_of_a_folder_come_from_the_checkpoint_when_sampling(digits, in_tmp):
    """Kind: options to repeat; the folder whose classes were counted in training is gone."""
    for name in ("a", "b", "c"):
        Path("mine", name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(Path("mine", name, f"{number}.png"))
    own = {"class_path": "zigma_pl.data.ImageFolder", "init_args": {"root": "mine", "condition": "class"}}
    own["init_args"] |= {"image_size_px": 8, "validation_share": 0.5, "batch_size": 4}
    Path("own.yaml").write_text(yaml.safe_dump({"data": own}))
    options = [*digits, "--config", "own.yaml", *TINY, "--scorer.num_samples=0"]
    assert run(["fit", *options, "--preview.num_samples=0"]) == 0
    Path("mine").rename("gone")
    last = "logs/digits/version_0/checkpoints/last.ckpt"
    assert run(["predict", *options, "--data.init_args.num_predict_samples=4", "--ckpt_path", last]) == 0
    table = json.loads(Path("samples", "samples.json").read_text())
    assert [row["class_id"] for row in table["samples"]] == [0, 1, 2, 0]


def error_of(arguments, capsys):
    assert run(arguments) != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    return errors[0]


def test_missing_data_set_is_one_message_with_folder_layout_and_synthetic_option(table1, in_tmp, capsys):
    no_clip = ["--data.init_args.text_encoder=hashing", "--data.init_args.text_encoder_path=null"]
    error = error_of(["fit", *table1, *no_clip, "--trainer.enable_progress_bar=false"], capsys)
    for part in ("data/mm-celeba-hq", "celeba-caption", "filenames.pickle", "synthetic"):
        assert part in error


def test_missing_text_encoder_is_one_message_that_says_how_to_get_it(table1, in_tmp, capsys):
    error = error_of(["fit", *table1, "--trainer.enable_progress_bar=false"], capsys)
    for part in ("text_encoder_path", "weights/clip-vit-large-patch14", "weights fetch clip-vit-large-patch14"):
        assert part in error


def test_all_that_a_first_fit_lacks_is_said_at_once(table1, in_tmp, capsys):
    """Kind: faults found one by one, each after a wait."""
    Path("empty").mkdir()
    error = error_of(["fit", *table1, "--data.init_args.autoencoder=empty"], capsys)
    for part in ("data/mm-celeba-hq", "'empty'", "text_encoder_path", "weights fetch clip-vit-large-patch14"):
        assert part in error
    files = shlex.split(error.partition("python -m zigma_pl fit ")[2])
    assert files[:2] == table1
    assert files[3].endswith("configs/scale/smoke.yaml")


def test_what_is_wrong_with_or_without_files_is_said_alone(digits, in_tmp, capsys):
    error = error_of(["fit", *digits, "--data.init_args.batch_size=0"], capsys)
    assert "smoke" not in error


@pytest.mark.parametrize(
    "option", ["--model.optimizer.l=1", "--model.graph_sam=true", "--trainer.max_ste=1", "--prev.num_samples=1"]
)
def test_abbreviated_options_are_refused(option, digits, in_tmp, capsys):
    """Kind: a misspelt option that sets another one."""
    assert option.partition("=")[0].rpartition(".")[2] in error_of(["fit", *digits, option], capsys)


@pytest.mark.parametrize("command", [name for name, (module, _) in COMMANDS.items() if module != "lightning_cli"])
def test_abbreviated_options_of_other_commands_are_refused(command, capsys):
    action = {"prepare": ["coco"], "weights": ["list"]}.get(command, [])
    assert run([command, *action, "--hel"]) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--num-steps", "--num_steps"),
        ("--allow-import=my-package", "--allow_import=my-package"),
        ("--trainer.callbacks+=my-callback", "--trainer.callbacks+=my-callback"),
        ("--model.optimizer.init-args.weight-decay", "--model.optimizer.init_args.weight_decay"),
        ("my-file.yaml", "my-file.yaml"),
        ("-1", "-1"),
        ("--a prompt-like text", "--a prompt-like text"),
    ],
)
def test_dashes_in_option_names_are_underscores(given, expected):
    assert command_line.with_underscores(given) == expected


@pytest.mark.parametrize(
    ("command", "option"), [("fit", "data.init_args.batch_size"), ("demo", "max_steps"), ("prepare", "shard_size")]
)
def test_every_kind_of_command_accepts_dashes(command, option, digits, in_tmp, capsys):
    arguments = {"fit": digits, "demo": [], "prepare": ["digits", "--out", "x"]}[command]
    error = error_of([command, *arguments, f"--{option.replace('_', '-')}=0"], capsys)
    assert option.rpartition(".")[2] in error


def option_names(command):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run([*command, "--help"]) == 0
    return re.findall(r"(?<![\w-])--([a-z][\w.-]*)", printed.getvalue())


@pytest.mark.parametrize(
    "command",
    [
        ["sample"], ["show-batch"], ["prepare", "ucf101"], ["ablations"], ["tables"], ["report"], ["weights", "fetch"],
        ["export"], ["import-zigma"], ["demo"], ["paths"], ["orders"], ["average"],
        ["bench", "scan"], ["bench", "train"], ["bench", "flops"],
    ],
)  # fmt: skip
def test_help_has_one_spelling_and_one_name_for_one_thing(command):
    names = option_names(command)
    assert "help" in names
    assert not [name for name in names if "-" in name]
    assert not {"num", "steps", "output", "output_dir", "class_id", "n", "batch"} & set(names)


def test_options_of_model_and_data_come_before_the_trainers(capsys):
    assert run(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("--model.backbone") < text.index("--data CONFIG") < text.index("--trainer.max_steps")


def test_row_samples_without_the_data_set(table1, smoke, in_tmp, capsys):
    """predict needs neither the real nor the synthetic data on disk."""
    assert run(["fit", *table1, *smoke, *TINY, "--data.init_args.num_synthetic_items=20"]) == 0
    last = in_tmp / "logs" / "table1_zigzag8" / "version_0" / "checkpoints" / "last.ckpt"
    no_data = ["--data.init_args.synthetic=false", "--data.init_args.num_predict_samples=3"]
    assert run(["predict", *table1, *smoke, *TINY, *no_data, "--ckpt_path", str(last)]) == 0
    assert "caption" in json.loads((in_tmp / "samples" / "samples.json").read_text())["samples"][0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model.lerning_rate=1"], ["lerning_rate"]),
        (["--model.backbone.class_path=zigma_pl.backbones.Zigmo"], ["Zigmo"]),
        (["--model.backbone.init_args.patch_size=3"], ["8 x 8", "patch_size"]),
        (["--model.backbone.init_args.scan.scheme=zagzig"], ["zagzig", "hilbert"]),
        (["--data.init_args.batch_size=0"], ["batch_size"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--model.guidance.scale=-1"], ["guidance.scale"]),
        (["--model.objective.prediction=speed"], ["speed", "velocity"]),
        (["--model.backbone.init_args.num_classes=7"], ["num_classes=7", "num_classes=10", "Digits"]),
    ],
)
def test_wrong_options_give_one_clear_line(options, parts, digits, in_tmp, capsys):
    assert run(["fit", *digits, *options]) != 0
    captured = capsys.readouterr().err
    errors = [line for line in captured.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "Traceback" not in captured
    assert all(part in errors[0] for part in parts)


def test_truncated_checkpoint_is_named(digits, in_tmp, capsys):
    Path("cut.ckpt").write_bytes(b"PK\x03\x04 not all of it")
    assert run(["predict", *digits, "--ckpt_path=cut.ckpt"]) == 1
    assert re.search(r"error: .*cut\.ckpt", capsys.readouterr().err)


def test_console_script_runs_the_command_line(repository, in_tmp, monkeypatch, capsys):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    name, _, target = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    assert name == "zigma_pl"
    script = EntryPoint(name, target, "console_scripts").load()
    (in_tmp / "own_module_beside.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["zigma_pl", "--help"])
    assert script() == 0
    assert "python -m zigma_pl" in capsys.readouterr().out
    assert find_spec("own_module_beside") is not None  # as with `python -m`


def test_unknown_command_suggests_the_nearest(capsys):
    assert run(["predcit"]) == 2
    assert "did you mean 'predict'?" in capsys.readouterr().err


def test_full_disk_is_one_line(monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

    monkeypatch.setattr("zigma_pl.cli.commands.paths.main", full)
    assert run(["paths"]) == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("error", [PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError])
def test_errors_of_the_file_system_are_one_line_with_the_path(error, monkeypatch, capsys):
    """Kind: tracebacks where a path cannot be used."""

    def refused(_):
        raise error(errno.EACCES, "not like this", "some/place")

    monkeypatch.setattr("zigma_pl.cli.commands.paths.main", refused)
    assert run(["paths"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: some/place: not like this: choose another path, or correct this one and its permissions"
    ]


def test_a_place_that_cannot_be_written_to_is_one_line(digits, in_tmp, capsys):
    Path("logs").write_text("a file where a folder should be")
    assert error_of(["fit", *digits, *TINY], capsys)
    assert Path("logs").read_text() == "a file where a folder should be"


def test_output_that_nobody_reads_is_no_error():
    """Kind: tracebacks where one line is promised."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "zigma_pl", "weights", "list"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (command_line.CLOSED_OUTPUT_STATUS, "")


@pytest.mark.parametrize("command", ["validate", "predict", "test"])
def test_commands_that_need_a_checkpoint_refuse_to_run_without_one(command, digits, in_tmp, capsys):
    """Kind: wrong numbers without a word."""
    assert "--ckpt_path" in error_of([command, *digits, *TINY], capsys)


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(_):
        raise ValueError("a bug of ours")

    monkeypatch.setattr("zigma_pl.cli.commands.paths.main", broken)
    with pytest.raises(ValueError, match="a bug of ours"):
        run(["paths"])


def test_worker_errors_lose_their_traceback():
    error = RuntimeError(
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nUserError: 3.jpg is bad"
    )
    assert command_line.one_line(error) == "3.jpg is bad"
