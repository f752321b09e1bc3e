"""A prepared set at an address is copied once, whole, and only if every hash agrees."""

import errno
import multiprocessing
import shutil
import threading
from collections import namedtuple
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED
from zigma_pl.data import ImageFolder
from zigma_pl.data.cache import remote
from zigma_pl.data.cache.manifest import MANIFEST_NAME, read_manifest

STORED = Path(__file__).parent / "stored"
ADDRESS = "memory://bucket/set"


@pytest.fixture(autouse=True)
def memory():
    """The stored set, also as files in memory; returns the file system."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.put(f"{STORED}/", "/bucket/set", recursive=True)
    yield filesystem
    filesystem.store.clear()


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def batch_of(**options):
    data = ImageFolder("nowhere", condition="caption", image_size_px=4, caption_dim=4, max_caption_tokens=3, **options)
    return data.samples("train").__getitems__([(0, 0), (1, 3)])


def test_training_reads_a_copy_that_is_made_once(tmp_path, memory):
    options = {"cache": ADDRESS, "keep_fetched_in": str(tmp_path)}
    fetched = batch_of(**options)
    assert fetched.images.equal(batch_of(cache=str(STORED)).images)
    (folder,) = tmp_path.iterdir()
    assert files_of(folder) == files_of(STORED)
    for name in memory.find("/bucket/set"):
        if not name.endswith(MANIFEST_NAME):
            memory.rm(name)
    assert batch_of(**options).captions == fetched.captions


def test_without_a_folder_copies_are_below_the_users_cache(tmp_path, monkeypatch):
    assert Path.home() / ".cache" in remote.DEFAULT_FOLDER.parents
    monkeypatch.setattr("zigma_pl.data.cache.reading.DEFAULT_FOLDER", tmp_path)
    batch_of(cache=ADDRESS)
    assert len(list(tmp_path.glob(f"*/{MANIFEST_NAME}"))) == 1


def test_another_set_at_the_address_gets_another_copy(tmp_path, memory):
    first = remote.copy_once(ADDRESS, tmp_path)
    memory.pipe(f"/bucket/set/{MANIFEST_NAME}", (STORED / MANIFEST_NAME).read_bytes() + b"\n")
    assert remote.copy_once(ADDRESS, tmp_path) != first


def test_http(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(STORED)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        folder = remote.copy_once(f"http://127.0.0.1:{server.server_port}/", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert files_of(folder) == files_of(STORED)


def test_an_interrupted_copy_is_completed(tmp_path, memory, monkeypatch):
    name = "train/shard-00001.pixels.npy"
    content = memory.cat(f"/bucket/set/{name}")
    memory.rm(f"/bucket/set/{name}")
    with pytest.raises(UserError, match=r"shard-00001\.pixels\.npy"):
        remote.copy_once(ADDRESS, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / MANIFEST_NAME).exists()
    made = (folder / "train/shard-00000.pixels.npy").stat().st_mtime_ns
    (folder / f"train/{UNFINISHED}1-x").touch()  # as a killed process leaves it
    memory.pipe(f"/bucket/set/{name}", content)
    assert remote.copy_once(ADDRESS, tmp_path) == folder
    assert (folder / "train/shard-00000.pixels.npy").stat().st_mtime_ns == made
    assert not list(folder.rglob(f"{UNFINISHED}*"))
    assert read_manifest(folder) == read_manifest(STORED)


@pytest.mark.parametrize("change", [lambda b: b[:-1] + b"x", lambda b: b[:-1], lambda b: b + b"x"])
def test_a_file_that_is_not_the_one_in_the_manifest_is_not_kept(tmp_path, memory, change):
    path = "/bucket/set/train/shard-00000.pixels.npy"
    memory.pipe(path, change(memory.cat(path)))
    with pytest.raises(UserError, match=r"shard-00000\.pixels\.npy does not match the manifest"):
        remote.copy_once(ADDRESS, tmp_path)
    assert not list(tmp_path.rglob("shard-00000.pixels.npy"))


def test_a_folder_without_room_is_refused_before_anything_is_copied(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 100, 100))
    with pytest.raises(UserError, match=r"data\.keep_fetched_in: .* GB free"):
        remote.copy_once(ADDRESS, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_disk_that_runs_full_is_one_line(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zigma_pl.core.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        remote.copy_once(ADDRESS, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(
    "address",
    [
        "pipe:touch x; cat {}",
        "pipe://touch x",
        "simplecache::memory://bucket/set",
        "reference://x.json",
        "zip://set::file:///a.zip",
        "memory://bucket/nowhere",
        "nonsense://host",
        "http://127.0.0.1:9/set",
    ],
)
def test_addresses_that_cannot_be_read_are_one_line(address, in_tmp):
    with pytest.raises(UserError) as error:
        batch_of(cache=address, keep_fetched_in="kept")
    assert "\n" not in str(error.value)
    assert not list(Path().iterdir())


def copy_slowly(folder, copied):
    read = remote._read

    def read_and_tell(source, address, name, *arguments):
        if name != MANIFEST_NAME:
            copied.put(name)
        return read(source, address, name, *arguments)

    remote._read = read_and_tell
    remote.copy_once(ADDRESS, folder)


def test_of_two_processes_one_copies(tmp_path):
    context = multiprocessing.get_context("fork")
    copied = context.Queue()
    processes = [context.Process(target=copy_slowly, args=(tmp_path, copied)) for _ in range(2)]
    for process in processes:
        process.start()
    names = []
    while any(process.is_alive() for process in processes) or not copied.empty():
        while not copied.empty():
            names.append(copied.get())
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(names) == sorted(2 * list(files_of(STORED)))  # the content and the end of each file, once
