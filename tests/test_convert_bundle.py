"""Reader of TensorFlow checkpoints: real files, files of the test's own writer, damaged files."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from convert_bundle_writer import HEADER, entry, message, table, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.tf_conversion import bundle
from tools.tf_conversion.bundle import BundleError, BundleReader, find_prefix

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures", "tf")
LSTM_LM = os.path.join(FIXTURES, "ls_lstm_lm_small", "model", "network.035")


@pytest.mark.parametrize("name", sorted(os.listdir(FIXTURES)))
def test_real_checkpoints(name):
    reader = BundleReader(os.path.join(FIXTURES, name, "model"))
    with open(os.path.join(FIXTURES, name, "tf_params.tsv"), encoding="utf8") as file:
        expected = [line.split("\t") for line in file.read().splitlines() if line.count("\t") == 2]
    assert sorted(reader.entries) == sorted(row[0] for row in expected)
    for param, shape, dtype in expected:
        value = reader.read(param)
        assert value.shape == tuple(json.loads(shape)) == reader.entries[param].shape
        assert value.dtype.name == dtype
        assert np.isfinite(value).all() and value.flags.writeable
    assert reader.read("global_step") == 123456


def some_variables(rng=None) -> dict[str, np.ndarray]:
    rng = rng or np.random.default_rng(1)
    variables = {f"layer{i:02d}/sub/W": rng.normal(size=(i, 3)).astype(np.float32) for i in range(25)}
    return {
        **variables,
        "global_step": np.array(7, dtype=np.int64),
        "half": np.array([0.5, -2.0], dtype=np.float16),
        "double": rng.normal(size=(2, 1, 3)),
        "flags": np.array([True, False, True]),
        "name with ü": np.arange(4, dtype=np.int32),
    }


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("items_per_block", [1, 4, 1000])
def test_written_bundle(tmp_path, num_shards, items_per_block):
    variables = some_variables()
    write_bundle(str(tmp_path / "m"), variables, num_shards=num_shards, items_per_block=items_per_block)
    reader = BundleReader(str(tmp_path / "m"))
    assert sorted(reader.entries) == sorted(variables)
    for name, value in variables.items():
        np.testing.assert_array_equal(reader.read(name), value, strict=True)


def test_bfloat16(tmp_path):
    values = np.array([1.0, -2.5, 3e38, 0.0], dtype=np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    crc = bundle.mask_crc(bundle.google_crc32c.value(raw))
    described = entry(dtype=14, shape=(4,), shard=0, offset=0, size=8, crc=crc)
    (tmp_path / "m.index").write_bytes(table([(b"", HEADER), (b"x", described)]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(raw)
    got = BundleReader(str(tmp_path / "m")).read("x")
    np.testing.assert_allclose(got, values, rtol=2**-7)
    assert got.dtype == np.float32


# -- which file


def test_find_prefix(tmp_path):
    for name in ("a", "b", "checkpoint"):
        write_bundle(str(tmp_path / name), {"x": np.zeros(2, np.float32)})
    p = str(tmp_path / "a")
    assert find_prefix(p) == find_prefix(p + ".index") == find_prefix(p + ".data-00000-of-00001") == p
    assert find_prefix(str(tmp_path / "checkpoint")) == str(tmp_path / "checkpoint")  # a prefix, as in the fixtures
    with pytest.raises(BundleError, match=r"3 checkpoints \(a, b, checkpoint\): give the \.index file"):
        find_prefix(str(tmp_path))
    os.remove(tmp_path / "checkpoint.index")
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/gone/models/b"\nall_model_checkpoint_paths: "/gone/models/a"\n'
    )
    assert find_prefix(str(tmp_path)) == find_prefix(str(tmp_path / "checkpoint")) == str(tmp_path / "b")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "c"\n')
    with pytest.raises(BundleError, match="names the checkpoint c, which does not exist"):
        find_prefix(str(tmp_path))
    (tmp_path / "checkpoint").write_text("hello")
    with pytest.raises(BundleError, match="no line 'model_checkpoint_path'"):
        find_prefix(str(tmp_path))


def test_wrong_paths(tmp_path):
    with pytest.raises(BundleError, match="there is neither"):
        BundleReader(str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match=r"no \.index file"):
        BundleReader(str(tmp_path))
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(BundleError, match="is no file of a TensorFlow checkpoint"):
        BundleReader(str(tmp_path / "model.pt"))
    write_bundle(str(tmp_path / "only"), {"x": np.zeros(2, np.float32)})
    assert BundleReader(str(tmp_path)).prefix == str(tmp_path / "only")
    os.remove(tmp_path / "only.data-00000-of-00001")
    with pytest.raises(BundleError, match=r"only\.data-00000-of-00001 cannot be read: No such file"):
        BundleReader(str(tmp_path / "only")).read("x")
    with pytest.raises(BundleError, match="has no variable 'y'"):
        BundleReader(str(tmp_path / "only")).read("y")


# -- damaged and unsupported files


@pytest.mark.parametrize(
    ("index", "what"),
    [
        (b"", "only 0 bytes"),
        (b"x" * 100, "last 8 bytes"),
        (table([(b"", HEADER)], compression=1), "compression is snappy"),
        (table([(b"a", HEADER)]), "no header"),
        (table([(b"", message((1, 1), (2, 1)))]), "big-endian"),
        (table([(b"", message((1, 1), (3, message((2, 2)))))]), "version 2"),
        (table([(b"", message((1, 0)))]), "0 shards"),
        (table([(b"", HEADER), (b"x", message((1, 1), (3, 1)))]), "shard 1 of 1"),
        (table([(b"", HEADER), (b"x", message((1, 1), (2, message((3, 1)))))]), "shape of x is unknown"),
        (table([(b"", HEADER), (b"x", message((99, 1)))]), "unknown field 99"),
        (table([(b"", HEADER), (b"\xff", message((1, 1)))]), "not UTF-8"),
        (table([(b"", HEADER), (b"x", b"\x08")]), "cut off"),
        (table([(b"", HEADER), (b"x", b"\x08" + b"\xff" * 10)]), "malformed"),
        (table([(b"", HEADER), (b"x", b"\x0b")]), "wire type 3"),
    ],
)
def test_malformed_index(tmp_path, index, what):
    (tmp_path / "m.index").write_bytes(index)
    with pytest.raises(BundleError, match=what) as info:
        BundleReader(str(tmp_path / "m"))
    assert "m.index is not a readable index of a TensorFlow checkpoint" in str(info.value)


def test_unsupported_variables_are_listed_but_not_read(tmp_path):
    string = entry(dtype=7, shape=(), shard=0, offset=0, size=5, crc=0)
    sliced = message((1, 1), (2, message((2, message((1, 4))))), (7, message((1, b""))))
    wrong_size = entry(dtype=1, shape=(3,), shard=0, offset=0, size=8, crc=0)
    items = [(b"", HEADER), (b"graph", string), (b"part", sliced), (b"w", wrong_size), (b"\0\1part", wrong_size)]
    (tmp_path / "m.index").write_bytes(table(items))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(100))
    reader = BundleReader(str(tmp_path / "m"))
    assert sorted(reader.entries) == ["graph", "part", "w"]
    with pytest.raises(BundleError, match="type string"):
        reader.read("graph")
    with pytest.raises(BundleError, match="partitioned"):
        reader.read("part")
    with pytest.raises(BundleError, match=r"8 bytes, but shape \[3\]"):
        reader.read("w")


def read_all(path: str) -> dict[str, np.ndarray]:
    reader = BundleReader(path)
    return {name: reader.read(name) for name in reader.entries}


@pytest.fixture(scope="module")
def fuzz_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    variables = {name: value for name, value in some_variables().items() if value.size}
    write_bundle(str(folder / "m"), variables, num_shards=2, items_per_block=7)
    files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    return folder, files, variables


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damage_is_never_silent(fuzz_dir, data):
    folder, files, variables = fuzz_dir
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    kind = data.draw(st.sampled_from(["flip", "truncate", "remove", "insert", "swap"]))
    pos = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 3))):
            pos = data.draw(st.integers(0, len(content) - 1))
            content[pos] ^= data.draw(st.integers(1, 255))
    elif kind == "truncate":
        del content[pos:]
    elif kind == "remove":
        del content[pos : pos + data.draw(st.integers(1, 50))]
    elif kind == "insert":
        content[pos:pos] = data.draw(st.binary(min_size=1, max_size=20))
    else:  # two parts exchanged
        size = data.draw(st.integers(1, 60))
        other = data.draw(st.integers(0, len(content) - 1))
        a, b = sorted((pos, other))
        content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    (folder / name).write_bytes(content)
    try:
        got = read_all(str(folder / "m"))
    except BundleError:
        return
    finally:
        (folder / name).write_bytes(files[name])
    assert sorted(got) == sorted(variables)
    for param, value in variables.items():
        np.testing.assert_array_equal(got[param], value, strict=True)


def test_every_single_byte_of_an_index_counts(tmp_path):
    """Each byte of a real index is flipped once: no flip goes unnoticed, not even in the padding."""
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(LSTM_LM + suffix, tmp_path / f"m{suffix}")
    original = (tmp_path / "m.index").read_bytes()
    for pos in range(len(original)):
        content = bytearray(original)
        content[pos] ^= 1 << (pos % 8)
        (tmp_path / "m.index").write_bytes(content)
        with pytest.raises(BundleError):
            BundleReader(str(tmp_path / "m"))
