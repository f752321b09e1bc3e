import io
import pickle
import tarfile

import numpy as np
import pytest

from zigma_pl.data.tar_shards import open_shard
from zigma_pl.errors import UserError


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def write_tar(path, members, dialect=tarfile.USTAR_FORMAT):
    """Write (name, content) pairs, or members as they are given."""
    with tarfile.open(path, "w", format=dialect) as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shard.tar"


DIALECTS = pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@DIALECTS
def test_samples_and_fields_are_those_of_webdataset(path, dialect):
    a, b = np.arange(6, dtype=np.float16).reshape(2, 3), np.asfortranarray(np.arange(8.0).reshape(2, 4))
    write_tar(
        path,
        [
            ("./x/01.image.jpg", b"picture"),
            ("./x/01.A.npy", npy(a)),
            ("./x/02.a.npy", npy(b)),
            ("./x/02.cls", b"7\n"),
            ("x.y/03.json", b'["caption"]'),
        ],
        dialect,
    )
    shard = open_shard(path)
    assert shard.index.keys == ["x/01", "x/02", "x.y/03"]
    assert len(shard) == 3
    assert shard.read(0, "image.jpg") == b"picture"
    assert np.array_equal(shard.array(0, "a.npy"), a)
    assert shard.array(0, "a.npy").dtype == np.float16
    assert np.array_equal(shard.array(1, "a.npy"), b)
    assert shard.integer(1, "cls") == 7
    assert shard.json(2, "json") == ["caption"]
    assert not shard.has(2, "cls")
    assert not shard.array(0, "a.npy").flags.writeable


@DIALECTS
@pytest.mark.parametrize("folder", ["d", "f" * 60 + "/" + "g" * 60, "é"], ids=["short", "long", "accent"])
def test_grouping_agrees_with_the_library(path, dialect, folder):
    import webdataset as wds

    names = ("a.b.x", "a.c", "e.B.X", "noextension", "a.c")
    write_tar(path, [(f"{folder}/{name}", name.encode() * 200) for name in names], dialect)
    theirs = [
        (sample["__key__"], {field: value for field, value in sample.items() if not field.startswith("__")})
        for sample in wds.WebDataset(str(path), shardshuffle=False)
    ]
    shard = open_shard(path)
    ours = [
        (key, {field: shard.read(place, field) for field in shard.fields if shard.has(place, field)})
        for place, key in enumerate(shard.index.keys)
    ]
    assert ours == theirs


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        ("/etc/passwd", "leads out"),
        ("../../0.cls", "leads out"),
        ("a/../../0.cls", "leads out"),
        ("a\\..\\0.cls", "leads out"),
        (special("0.cls", tarfile.SYMTYPE, "/etc/passwd"), "link to '/etc/passwd'"),
        (special("0.cls", tarfile.LNKTYPE, "1.cls"), "link to"),
        (special("0.cls", tarfile.CHRTYPE), "device"),
        (special("0.cls", tarfile.FIFOTYPE), "device or a pipe"),
        (special("0.cls", b"Z"), "no plain file"),
    ],
    ids=["absolute", "climbing", "climbing inside", "backslashes", "symlink", "hard link", "device", "pipe", "odd"],
)
@DIALECTS
def test_harmful_members_are_refused_by_name(path, tmp_path, member, fault, dialect):
    write_tar(path, [("1.cls", b"1"), (member, b"")], dialect)
    with pytest.raises(UserError, match=fault) as error:
        open_shard(path)
    assert str(path) in str(error.value)
    assert getattr(member, "name", member) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("executed",)


def test_pickles_are_never_loaded(path):
    objects = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    write_tar(path, [("0.a.npy", objects), ("0.b.npy", pickle.dumps(Bomb())), ("0.c.pyd", pickle.dumps(Bomb()))])
    shard = open_shard(path)
    with pytest.raises(UserError, match=r"0\.a\.npy' holds pickled Python objects, which were not loaded"):
        shard.array(0, "a.npy")
    with pytest.raises(UserError, match=r"0\.b\.npy' is no array"):
        shard.array(0, "b.npy")


@pytest.mark.parametrize("damage", ["in a member", "in a header", "no end", "bit", "empty", "text", "gzip", "missing"])
def test_damaged_shards_are_named(path, damage):
    write_tar(path, [("0.cls", b"1"), ("1.a.npy", npy(np.zeros(1000)))])
    content = path.read_bytes()
    cut = {
        "in a member": content[:4000],
        "in a header": content[:1300],
        "no end": content[:1024],
        "bit": content[:1024] + b"2" + content[1025:],
        "empty": b"",
        "text": b"no tar" * 200,
    }
    path.unlink()
    if damage == "gzip":
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("0.cls"), io.BytesIO())
    elif damage != "missing":
        path.write_bytes(cut[damage])
    with pytest.raises(UserError, match=r"shard\.tar") as error:
        open_shard(path)
    assert "\n" not in str(error.value)


def test_damaged_fields_are_named(path):
    long = npy(np.zeros(4))
    write_tar(path, [("7.a.npy", long[:-8]), ("7.b.npy", b"x"), ("7.cls", b"cat"), ("7.json", b"{")])
    shard = open_shard(path)
    for read, field in ((shard.array, "a.npy"), (shard.array, "b.npy"), (shard.integer, "cls"), (shard.json, "json")):
        with pytest.raises(UserError, match=rf"shard\.tar: '7\.{field}'"):
            read(0, field)
    with pytest.raises(UserError, match=r"sample '7' has no field 'txt', it has a\.npy, b\.npy, cls, json"):
        shard.read(0, "txt")


def test_a_field_that_is_there_twice_is_refused(path):
    write_tar(path, [("0.cls", b"1"), ("0.cls", b"2")])
    with pytest.raises(UserError, match=r"'0\.cls' is in it twice"):
        open_shard(path)
