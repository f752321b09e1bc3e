"""Kinds: files that are small and become large, types that are not what they should be, numbers that are not finite."""

import io
import pickle
import warnings
import zipfile

import pytest
import torch
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from kills_driver import build, trainer_for

import zigma_pl
from zigma_pl.core.class_paths import described
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.data.specification import Specification
from zigma_pl.interop.training_checkpoint import model_of
from zigma_pl.training.callbacks.checkpoint_options import stored_specification
from zigma_pl.training.checkpoints.archive import read_step
from zigma_pl.training.checkpoints.io import WholeFileIO, read_checkpoint
from zigma_pl.training.checkpoints.newest import newest_checkpoint

STEPS = 2


def fit(folder, ckpt_path=None, max_steps=STEPS):
    warnings.simplefilter("ignore")
    trainer = trainer_for(folder, max_steps)
    trainer.fit(build(), datamodule=Digits(batch_size=4), ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint of a real run."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder)
    return newest_checkpoint(folder / "checkpoints").path


@pytest.fixture
def load(saved):
    return lambda: torch.load(saved, weights_only=True)


def refused(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


def rewritten(source, target, compression=zipfile.ZIP_STORED, twice=None, change=None):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if change and name.endswith("data.pkl") else content)
            if name.endswith("data.pkl") and twice:
                new.writestr(f"{twice}/data.pkl", content)
    return target


def test_a_checkpoint_rewritten_without_compression_is_read(saved, tmp_path):
    path = rewritten(saved, tmp_path / "a.ckpt")
    assert read_checkpoint(path)["global_step"] == read_step(path) == STEPS


def test_compressed_entries_and_two_pickles_are_refused_before_they_are_read(saved, tmp_path):
    bomb = rewritten(saved, tmp_path / "bomb.ckpt", zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(read_checkpoint, bomb)
    assert read_step(bomb) is None
    refused(read_checkpoint, rewritten(saved, tmp_path / "two.ckpt", twice="other"))


def test_sizes_that_the_file_does_not_have_are_refused(saved, tmp_path):
    path = tmp_path / "a.ckpt"
    content = bytearray(saved.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 20  # sizes of the last entry in the index
    content[place : place + 8] = 2 * (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "more bytes" in refused(read_checkpoint, path)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(levels):
    value = [0]
    for _ in range(levels):
        value = [value] * 10
    return value


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


BOMBS = {
    "memory": Call(bytearray, 10**12),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a tensor without storage": torch.empty(10**9, device="meta"),
    "a view of one number": torch.zeros(1).expand(10**9),
    "ten to the 20": nested(20),
    "depth": deep(300),
    "digits": 10**5000,
    "surrogate": "\ud800",
    "set": {1},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name, load, tmp_path):
    torch.save(load() | {"hyper_parameters": {"bomb": BOMBS[name]}}, tmp_path / "a.ckpt")
    refused(read_checkpoint, tmp_path / "a.ckpt")


# --- types ------------------------------------------------------------------------------------------------------------

LOOP = ("loops", "fit_loop", "epoch_loop.batch_progress", "total")
COUNTED = ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total")
WRONG = [
    (("state_dict",), []),
    (("state_dict",), {"a": "text"}),
    (("state_dict",), {"a": [1.0]}),
    (("current_model_state",), {"a": torch.zeros(1)}),
    (("global_step",), -1),
    (("global_step",), "2"),
    (("global_step",), True),
    (("global_step",), 10**30),
    (("global_step",), 7),
    (("epoch",), "0"),
    (("zigma_format_version",), "1"),
    (("pytorch-lightning_version",), 7),
    (("pytorch-lightning_version",), "new"),
    (("hyper_parameters",), [1]),
    (("callbacks",), [1]),
    (("callbacks", "TrainingTotals"), "text"),
    (("callbacks", "TrainingTotals", "samples_seen"), "text"),
    (("callbacks", "EMA", "latest_update_step"), [1]),
    (("loops",), None),
    (("loops", "fit_loop"), {}),
    ((*LOOP, "processed"), "2"),
    ((*LOOP, "processed"), -1),
    ((*LOOP, "processed"), 10**18),
    ((*COUNTED, "completed"), {}),
    (("optimizer_states",), []),
    (("optimizer_states", 0), "text"),
    (("optimizer_states", 0, "state"), {"0": {}}),
    (("optimizer_states", 0, "state"), {900: {}}),
    (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(3)),
    (("optimizer_states", 0, "state", 0, "exp_avg"), "text"),
    (("optimizer_states", 0, "param_groups"), []),
    (("optimizer_states", 0, "param_groups", 0, "lr"), "fast"),
    (("optimizer_states", 0, "param_groups", 0, "lr"), float("nan")),
    (("lr_schedulers",), []),
    (("lr_schedulers", 0), {"step": 1}),
    (("lr_schedulers", 0, "base_lrs"), [1.0]),
    (("random_states",), {}),
    (("random_states", 0), {"torch": torch.zeros(3)}),
    (("random_states", 0, "torch"), torch.zeros(3, dtype=torch.uint8)),
    (("random_states", 0, "python"), (3, torch.zeros(5, dtype=torch.int64), None)),
    (("averaging_state",), {"n_averaged": 3}),
    (("averaging_state", "n_averaged"), torch.zeros(3)),
    (("zigma_options",), {"scan": [1]}),
    (("zigma_options", "training", "seed"), torch.zeros(2)),
    (("trained_on",), {"class_names": 3}),
    (("trained_on",), {"captions": [1]}),
    (("trained_on",), {"data": {"class_path": torch.zeros(2)}}),
]


def replace(content, place, value):
    *parents, last = place
    for name in parents:
        content = content[name]
    content[last] = value


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_wrong_type_or_number_is_one_line(place, value, load, tmp_path):
    content = load()
    replace(content, place, value)
    torch.save(content, tmp_path / "a.ckpt")
    message = refused(fit, tmp_path, tmp_path / "a.ckpt", STEPS + 1)
    assert "a.ckpt" in message


@pytest.mark.parametrize("value", [[1], {1: 2}, "8", 8.0, True])
def test_a_size_of_another_type_does_not_reach_the_backbone(value, load, tmp_path):
    content = load()
    content["zigma_options"]["backbone"]["latent_height"] = value
    torch.save(content, tmp_path / "a.ckpt")
    assert "latent_height" in refused(stored_specification, tmp_path / "a.ckpt")


@pytest.mark.parametrize("part", ["loops", "optimizer_states", "lr_schedulers"])
def test_training_needs_its_state(part, load, tmp_path):
    content = load()
    del content[part]
    torch.save(content, tmp_path / "a.ckpt")
    assert part in refused(fit, tmp_path, tmp_path / "a.ckpt", STEPS + 1)


def test_integers_are_no_weights(load, tmp_path):
    content = load()
    for part in ("state_dict", "current_model_state"):
        content[part] = {name: weight.long() for name, weight in content[part].items()}
    torch.save(content, tmp_path / "a.ckpt")
    assert "does not match this model" in refused(fit, tmp_path, tmp_path / "a.ckpt", STEPS + 1)


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["state_dict", "current_model_state", "moments"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(part, number, load, tmp_path):
    content = load()
    tensors = content["optimizer_states"][0]["state"][0] if part == "moments" else content[part]
    tensors["exp_avg" if part == "moments" else next(iter(tensors))].view(-1)[0] = number
    torch.save(content, tmp_path / "a.ckpt")
    assert "NaN or infinity" in refused(WholeFileIO().load_checkpoint, tmp_path / "a.ckpt")


# --- fuzz -------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(torch.zeros(2)),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), part, max_size=3),
    max_leaves=5,
)


def assert_one_line(action, *arguments):
    """Run what may raise a UserError, of one line, and nothing else."""
    message = ""
    try:
        action(*arguments)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def places(value, above=()):
    """Return every place in nested dicts and lists, those of tensors left out where there are many."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*above, name)
        yield from places(part, (*above, name))


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=12)
@given(data=st.data())
def test_any_metadata_is_resumed_from_or_refused(data, saved, tmp_path_factory):
    content = torch.load(saved, weights_only=True)
    names = sorted(
        places({name: part for name, part in content.items() if "state" not in name or name.endswith("s")}), key=str
    )
    replace(content, data.draw(st.sampled_from(names)), data.draw(VALUES))
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(content, folder / "a.ckpt")
    assert_one_line(fit, folder, folder / "a.ckpt", STEPS + 1)


@pytest.fixture(scope="module")
def exportable(saved, tmp_path_factory):
    """The checkpoint with the options that a run on the command line stores."""
    content, module = torch.load(saved, weights_only=True), build()
    parts = {name: described(getattr(module, name)) for name in ("backbone", "objective", "sampler", "guidance")}
    content["hyper_parameters"] = {**parts, "seed": 1}
    content["trained_on"] = {"class_names": ["a"], "data": {"class_path": "zigma_pl.data.Digits"}}
    path = tmp_path_factory.mktemp("exportable") / "a.ckpt"
    torch.save(content, path)
    return path


def export(path):
    zigma_pl.save_pretrained(model_of(read_checkpoint(path), "average", path), path.parent / "model")


def test_what_is_not_changed_is_exported(exportable):
    export(exportable)
    assert zigma_pl.from_pretrained(exportable.parent / "model").seed == 1


@pytest.mark.parametrize("part", ["backbone", "objective", "sampler", "guidance", "seed"])
@pytest.mark.parametrize("value", [torch.zeros(2), [1], "a", True])
def test_hyper_parameters_of_another_type_are_not_exported(part, value, exportable, tmp_path):
    content = torch.load(exportable, weights_only=True)
    content["hyper_parameters"][part] = value
    torch.save(content, tmp_path / "a.ckpt")
    refused(export, tmp_path / "a.ckpt")


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=20)
@given(data=st.data())
def test_any_options_are_exported_or_refused(data, exportable, tmp_path_factory):
    content = torch.load(exportable, weights_only=True)
    options = [
        *places({name: content[name] for name in ("hyper_parameters", "trained_on")}),
        *(("zigma_options", group, name) for group in ("backbone", "conditions") for name in Specification._fields),
    ]
    replace(content, data.draw(st.sampled_from(options)), data.draw(VALUES))
    path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
    torch.save(content, path)
    assert_one_line(export, path)
    assert_one_line(stored_specification, path)


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=100)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data, tmp_path_factory):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "global_step": 1}, buffer)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):  # in the pickle, with the right checksum
        path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
        path.write_bytes(content)

        def change(pickled):
            changed = bytearray(pickled)
            for _ in range(data.draw(st.integers(1, 4))):
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
            return bytes(changed)

        path = rewritten(path, path.with_name("b.ckpt"), change=change)
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
        path.write_bytes(content)
    read_step(path)
    assert_one_line(read_checkpoint, path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + 18 * b"\0", pickle.dumps({}), 100 * b"PK\x03\x04"])
def test_other_files(content, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    refused(read_checkpoint, path)
    assert read_step(path) is None
