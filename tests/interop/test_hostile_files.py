"""Hostile config.json and model.safetensors: a model or one line, in bounded time and memory.

Kinds: sizes in a file that are allocated before they are checked; malformed but valid JSON; any bytes.
"""

import copy
import json
import os
import resource
import struct
import time

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import zigma_pl
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.errors import UserError
from zigma_pl.interop.weights_file import MAX_HEADER_BYTES, read_tensors, stored_shapes
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import ODESampler
from zigma_pl.scan import ScanConfig

DEEP = "[" * 100_000 + "]" * 100_000
# As JSON text, since no encoder would write some of them.
HOSTILE = [
    *("null", "true", "0", "-1", "0.5", "1e9", "1000000000", "1000000000000", "1e400", "NaN", "9" * 5000),
    *('""', '"a/b"', '"../.."', '"\\ud800"', '"\\u0000"', '"lone \\udfff"', f'"{"x" * 100_000}"', '"é\\n\\u001b[2J"'),
    *("[]", "[[]]", "{}", '{"a": 1}', "[1, 2]", '["linear"]', DEEP),
]
NUM_BYTES_ALLOWED = 2**30
SECONDS_ALLOWED = 5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a tiny model, and what its config.json holds."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    backbone = zigma_pl.ZigMa(2, 4, 6, patch_size=2, width=16, depth=2, num_classes=3, scan=ScanConfig())
    model = zigma_pl.GenerativeModule(backbone, Objective(), ODESampler(num_steps=1))
    data = {"class_path": "zigma_pl.data.Digits", "autoencoder": "identity"}
    zigma_pl.save_pretrained(model, folder, {"training": {"step": 1}, "data": data})
    return folder, json.loads((folder / "config.json").read_text())


def places(value, above=()):
    """Every place in JSON content, as the keys that lead to it."""
    if isinstance(value, dict):
        return [(*above, key) for key in value] + [p for key in value for p in places(value[key], (*above, key))]
    return []


def replaced(content, place, text):
    """JSON text of the content with something else in one place."""
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "@here@"
    return json.dumps(content).replace('"@here@"', text).encode()


def loads_or_is_refused(folder, config):
    """Load a folder with this config.json, sample from what loads, and check time and memory."""
    (folder / "config.json").write_bytes(config)
    most_bytes, start = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    message = "it loads"
    try:
        model = zigma_pl.from_pretrained(folder)
        if getattr(model.sampler, "num_steps", 1) <= 10:
            model.sample(Batch(None, torch.arange(1), {"class": Condition(torch.tensor([1]))}))
    except UserError as error:
        message = str(error)
    assert message.isprintable()  # so it is one line
    assert len(message) < 2000
    assert time.monotonic() - start < SECONDS_ALLOWED
    assert 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_bytes < NUM_BYTES_ALLOWED


bounded = settings(
    derandomize=True,
    max_examples=100,
    deadline=None,  # the first load imports much; the time of each is checked above
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@bounded
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet='{}[]":,0e-\\ud8', max_size=60).map(str.encode)))
@example(content=b"")
@example(content=DEEP.encode())
@example(content=b"\xff\xfe{}")
@example(content=b'{"format_version": 1}')
def test_any_bytes_are_refused_in_one_line(exported, content):
    loads_or_is_refused(exported[0], content)


@bounded
@given(data=st.data())
def test_a_changed_config_loads_or_is_refused(exported, data):
    folder, content = exported
    place = data.draw(st.sampled_from(places(content)))
    loads_or_is_refused(folder, replaced(content, place, data.draw(st.sampled_from(HOSTILE))))


@bounded
@given(data=st.data())
def test_a_damaged_config_loads_or_is_refused(exported, data):
    folder, content = exported
    text = bytearray(json.dumps(content).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    loads_or_is_refused(folder, bytes(text[: data.draw(st.integers(1, len(text)))]))


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((("backbone", "init_args", name), 10**9) for name in ("depth", "latent_height", "in_channels", "patch_size")),
        (("backbone", "init_args", "width"), 10**6),
        (("backbone", "init_args", "num_classes"), 10**12),
        (("backbone", "init_args", "scan", "init_args", "num_orders"), 10**9),
        (("sampler", "init_args", "num_steps"), 10**12),
    ],
)
def test_sizes_are_refused_before_anything_is_allocated(exported, place, number):
    folder, content = exported
    (folder / "config.json").write_bytes(replaced(content, place, str(number)))
    start, most_bytes = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        zigma_pl.from_pretrained(folder)
    assert time.monotonic() - start < SECONDS_ALLOWED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_bytes < 2**17  # kB


def header(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{" + b" " * 100,
        header(b""),
        header(b"[]"),
        header(b"\xff" * 20),
        header(DEEP.encode()),
        header({"a": ENTRY}),
        header({"a": ENTRY | {"shape": [10**12]}}) + b"\0" * 8,
        header({"a": ENTRY | {"data_offsets": [0, 10**12]}}) + b"\0" * 8,
        header({"a": ENTRY | {"data_offsets": [8, 0]}}) + b"\0" * 8,
        header({"a": ENTRY, "b": ENTRY}) + b"\0" * 8,
        header({"a": ENTRY | {"dtype": "I64", "shape": [1]}}) + b"\0" * 8,
        header({"a": ENTRY | {"dtype": "F99"}}) + b"\0" * 8,
        header({"a": ENTRY | {"shape": "2"}}) + b"\0" * 8,
    ],
)
def test_hostile_headers_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        stored_shapes(path, "export it again")
    assert "\n" not in str(caught.value)


def test_shapes_are_those_of_the_tensors(tmp_path):
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(0, 4, dtype=torch.bfloat16), "c": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    shapes = stored_shapes(tmp_path / "model.safetensors", "")
    assert {name: (value.shape, value.dtype, value.device.type) for name, value in shapes.items()} == {
        name: (value.shape, value.dtype, "meta") for name, value in tensors.items()
    }
    assert torch.equal(read_tensors(tmp_path / "model.safetensors", "")["a"], tensors["a"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_no_regular_file_is_not_waited_for(exported, tmp_path, name):
    """Kind: a pipe or a folder in the place of a file."""
    folder, content = exported
    (folder / "config.json").write_text(json.dumps(content))
    for other in ("model.safetensors", "config.json"):
        if other != name:
            (tmp_path / other).symlink_to(folder / other)
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / name)
        with pytest.raises(UserError, match=name):
            zigma_pl.from_pretrained(tmp_path)
        if make is os.mkfifo:
            (tmp_path / name).unlink()


def test_weights_of_another_shape_are_refused_by_their_header_alone(exported, tmp_path, monkeypatch):
    folder, content = exported
    (tmp_path / "config.json").write_text(json.dumps(content))
    tensors = load_file(folder / "model.safetensors")
    tensors["final_layer.projection.bias"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr("zigma_pl.interop.folder.read_tensors", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(UserError, match=r"final_layer\.projection\.bias"):
        zigma_pl.from_pretrained(tmp_path)
