"""
Reader of TensorFlow checkpoints ("TensorBundle", the V2 format), without TensorFlow.

A checkpoint with the prefix P is a file P.index and data shards P.data-00000-of-00001, ...: the index is a sorted
string table in the format of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md), from "" to a
BundleHeaderProto and from each variable's name to a BundleEntryProto with type, shape, shard, offset, size and CRC32C
(tensorflow/core/protobuf/tensor_bundle.proto). The values are plain little-endian arrays in the shards.

Everything that is read is checked: each block of the index and each tensor has a CRC, every offset must lie in its
file, and the blocks must fill the index file without gaps. A damaged file gives :class:`BundleError`, never other
values.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np

__all__ = ["BundleEntry", "BundleError", "BundleReader", "find_prefix", "mask_crc"]

TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_SIZE = 48  # two block handles (varints, padded to 40 bytes), magic number
_BLOCK_TRAILER_SIZE = 5  # compression type, masked CRC
# Real indices have some kilobytes. The limits are for a data file given as an index, and for files made to do harm.
_MAX_INDEX_SIZE = 16 * 2**20  # bytes
_MAX_KEY_BYTES = 64 * 2**20  # of all names together: each is stored as what differs from the one before
_MAX_ITEMS = 2**18
_MAX_RANK = 254  # TensorFlow's own limit

# tensorflow/core/framework/types.proto. bfloat16 has no numpy type and is read as float32.
_DTYPES: dict[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_OTHER_DTYPES = {7: "string", 8: "complex64", 18: "complex128", 20: "resource", 21: "variant"}


class BundleError(ValueError):
    """A file is missing, damaged, or in a variant of the format that is not supported. The message is one sentence."""


@dataclass(frozen=True)
class BundleEntry:
    """One variable, as described in the index."""

    name: str
    dtype: str
    """numpy name, or "bfloat16", or "string" and others that cannot be read"""
    shape: tuple[int, ...]
    shard: int
    offset: int
    """bytes from the start of the shard"""
    size: int
    """bytes"""
    crc: int
    """masked CRC32C of the bytes"""
    sliced: bool
    """whether this is a partitioned variable, whose parts are stored under other names"""

    @property
    def num_values(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def readable(self) -> bool:
        """Whether :func:`BundleReader.read` can give the value."""
        return self.dtype in _DTYPES.values() and not self.sliced


def mask_crc(crc: int) -> int:
    """
    :param crc: CRC32C
    :return: the form in which LevelDB and TensorFlow store it (a CRC of data that hold CRCs would be weak)
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def find_prefix(path: str) -> str:
    """
    :param path: ``PREFIX.index`` or another file of the checkpoint, ``PREFIX``, the folder, or TensorFlow's
        ``checkpoint`` file in it, which names the last one
    :return: PREFIX
    :raises BundleError: no checkpoint, or several
    """
    if os.path.isfile(path + ".index"):  # first: "checkpoint" is also in use as a prefix
        return path
    if os.path.isfile(path):
        name = os.path.basename(path)
        if name == "checkpoint":
            return _prefix_of_state_file(path)
        for suffix in (".index", ".meta", ".data-"):
            stem = path[: path.rindex(suffix)] if suffix in name else None
            if stem and os.path.isfile(stem + ".index"):
                return stem
        raise BundleError(f"{path} is no file of a TensorFlow checkpoint: expected PREFIX.index, PREFIX, or a folder")
    if not os.path.isdir(path):
        raise BundleError(f"there is neither {path} nor {path}.index")
    state_file = os.path.join(path, "checkpoint")
    if os.path.isfile(state_file):
        return _prefix_of_state_file(state_file)
    prefixes = sorted(name[: -len(".index")] for name in os.listdir(path) if name.endswith(".index"))
    if len(prefixes) != 1:
        found = f"{len(prefixes)} checkpoints ({', '.join(prefixes[:5])})" if prefixes else "no .index file"
        raise BundleError(f"{path} has no file 'checkpoint', and {found}: give the .index file of one checkpoint")
    return os.path.join(path, prefixes[0])


def _prefix_of_state_file(path: str) -> str:
    """:return: what the entry model_checkpoint_path of TensorFlow's text file ``checkpoint`` names"""
    with open(path, encoding="utf8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            value = value.strip()
            if key.strip() == "model_checkpoint_path" and len(value) >= 2 and value[0] == value[-1] == '"':
                folder = os.path.dirname(path)
                # The path is often absolute, from where the model was trained.
                for prefix in (
                    os.path.join(folder, value[1:-1]),
                    os.path.join(folder, os.path.basename(value[1:-1])),
                ):
                    if os.path.isfile(prefix + ".index"):
                        return prefix
                raise BundleError(f"{path} names the checkpoint {value[1:-1]}, which does not exist")
    raise BundleError(f"{path} is not TensorFlow's file of that name: it has no line 'model_checkpoint_path'")


class BundleReader:
    """The variables of one checkpoint; values are read, and their CRCs checked, on demand."""

    def __init__(self, path: str):
        """
        :param path: see :func:`find_prefix`
        :raises BundleError: see there, or the index is damaged
        """
        self.prefix = find_prefix(path)
        self.index_file = self.prefix + ".index"
        try:
            with open(self.index_file, "rb") as file:
                if os.fstat(file.fileno()).st_size > _MAX_INDEX_SIZE:
                    raise BundleError(f"{self.index_file} is too large for the index of a checkpoint")
                data = file.read()
            table = list(_read_table(data))
            if not table or table[0][0] != b"":
                raise BundleError("it has no header")
            self.num_shards = _parse_header(table[0][1])
            self.entries: dict[str, BundleEntry] = {}
            for key, value in table[1:]:
                entry = _parse_entry(key, value)
                if entry is None:
                    continue
                if not 0 <= entry.shard < self.num_shards:
                    raise BundleError(f"{entry.name} is in shard {entry.shard} of {self.num_shards}")
                self.entries[entry.name] = entry
        except OSError as exc:
            raise BundleError(f"{self.index_file} cannot be read: {exc.strerror}") from None
        except BundleError as exc:
            raise BundleError(f"{self.index_file} is not a readable index of a TensorFlow checkpoint: {exc}") from None

    def shard_file(self, shard: int) -> str:
        """:return: name of a data file"""
        return f"{self.prefix}.data-{shard:05d}-of-{self.num_shards:05d}"

    def read(self, name: str) -> np.ndarray:
        """
        :param name: of a variable
        :return: its value, a new array (little-endian bfloat16 widened to float32)
        :raises BundleError: no such variable, not a plain tensor, or the data are damaged
        """
        entry = self.entries.get(name)
        if entry is None:
            raise BundleError(f"{self.prefix} has no variable {name!r}")
        if entry.sliced:
            raise BundleError(f"{name} in {self.prefix} is a partitioned variable: such checkpoints are not supported")
        if not entry.readable:
            raise BundleError(f"{name} in {self.prefix} has the type {entry.dtype}, which is no array of numbers")
        dtype = np.dtype("<u2") if entry.dtype == "bfloat16" else np.dtype(entry.dtype).newbyteorder("<")
        count = math.prod(entry.shape)
        if count * dtype.itemsize != entry.size:
            raise BundleError(
                f"{self.index_file}: {name} has {entry.size} bytes, but shape {list(entry.shape)} and type"
                f" {entry.dtype}"
            )
        filename = self.shard_file(entry.shard)
        try:
            with open(filename, "rb") as file:
                if entry.offset + entry.size > os.fstat(file.fileno()).st_size:
                    raise BundleError(f"{filename} is too short: {name} ends at byte {entry.offset + entry.size}")
                file.seek(entry.offset)
                raw = np.fromfile(file, dtype=np.uint8, count=entry.size)
        except OSError as exc:
            raise BundleError(f"{filename} cannot be read: {exc.strerror}") from None
        if raw.size != entry.size:
            raise BundleError(f"{filename} could not be read to the end of {name}")
        if mask_crc(google_crc32c.value(raw)) != entry.crc:
            raise BundleError(f"{filename} is damaged: the CRC of {name} is wrong")
        if entry.dtype == "bool" and raw.max(initial=0) > 1:
            raise BundleError(f"{filename} is damaged: {name} has other values than true and false")
        value = raw.view(dtype).reshape(entry.shape)
        if entry.dtype == "bfloat16":
            value = (value.astype(np.uint32) << 16).view(np.float32)
        return value.astype(value.dtype.newbyteorder("="), copy=False)


# -- LevelDB table


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """
    :param data: whole file
    :return: keys and values, keys strictly increasing
    """
    if len(data) < _FOOTER_SIZE:
        raise BundleError(f"it has only {len(data)} bytes")
    footer = data[-_FOOTER_SIZE:]
    if struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise BundleError("its last 8 bytes are not those of such a file (wrong kind of file, or incomplete)")
    meta_handle, pos = _handle(footer, 0)
    index_handle, pos = _handle(footer, pos)
    if any(footer[pos:-8]):
        raise BundleError("its footer is damaged")
    num_items = num_key_bytes = 0
    # Data blocks, meta index, index, footer follow each other without gaps, so no block can be skipped or read twice.
    end = 0
    previous_key = None
    for _, value in _block(data, *index_handle):
        handle, pos = _handle(value, 0)
        if pos != len(value) or handle[0] != end:
            raise BundleError("its blocks are not contiguous")
        end = handle[0] + handle[1] + _BLOCK_TRAILER_SIZE
        for item in _block(data, *handle):
            if previous_key is not None and item[0] <= previous_key:
                raise BundleError("its keys are not sorted")
            previous_key = item[0]
            num_items, num_key_bytes = num_items + 1, num_key_bytes + len(item[0])
            _check_size(num_items, num_key_bytes)
            yield item
    for _ in _block(data, *meta_handle):
        pass
    for offset, size in (meta_handle, index_handle):
        if offset != end:
            raise BundleError("its blocks are not contiguous")
        end = offset + size + _BLOCK_TRAILER_SIZE
    if end != len(data) - _FOOTER_SIZE:
        raise BundleError("its blocks are not contiguous")


def _check_size(num_items: int, num_key_bytes: int) -> None:
    """:raises BundleError: there is too much of them"""
    if num_items > _MAX_ITEMS or num_key_bytes > _MAX_KEY_BYTES:
        raise BundleError("it has more names than any model")


def _handle(data: bytes, pos: int) -> tuple[tuple[int, int], int]:
    """:return: (offset, size) of a block, position behind the handle"""
    offset, pos = _varint(data, pos)
    size, pos = _varint(data, pos)
    return (offset, size), pos


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """:return: keys and values of a block, after the check of its CRC"""
    end = offset + size
    if end + _BLOCK_TRAILER_SIZE > len(data) - _FOOTER_SIZE:
        raise BundleError(f"a block ends at byte {end}, behind the end of the file")
    (crc,) = struct.unpack_from("<I", data, end + 1)
    if mask_crc(google_crc32c.value(data[offset : end + 1])) != crc:
        raise BundleError(f"the CRC of the block at byte {offset} is wrong")
    if data[end] != 0:
        kind = "snappy" if data[end] == 1 else f"unknown ({data[end]})"
        raise BundleError(f"its compression is {kind}; TensorFlow writes indices of checkpoints without compression")
    if size < 4:
        raise BundleError("a block has no restart array")
    (num_restarts,) = struct.unpack_from("<I", data, end - 4)
    items_end = end - 4 - 4 * num_restarts
    if items_end < offset:
        raise BundleError("a block has a wrong restart array")
    key, pos, num_items, num_key_bytes = b"", offset, 0, 0
    while pos < items_end:  # each key is stored as the number of bytes it shares with the one before, and the rest
        shared, pos = _varint(data, pos)
        rest, pos = _varint(data, pos)
        value_size, pos = _varint(data, pos)
        if shared > len(key) or pos + rest + value_size > items_end:
            raise BundleError("a block has an entry of wrong size")
        key = key[:shared] + data[pos : pos + rest]
        pos += rest
        num_items, num_key_bytes = num_items + 1, num_key_bytes + len(key)
        _check_size(num_items, num_key_bytes)
        yield key, data[pos : pos + value_size]
        pos += value_size


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """:return: value, position behind it"""
    value = 0
    for shift in range(0, 64, 7):
        if pos >= len(data):
            raise BundleError("a number is cut off")
        value |= (data[pos] & 0x7F) << shift
        pos += 1
        if data[pos - 1] < 0x80:
            if value >= 2**64 or (shift and not data[pos - 1]):  # or in more bytes than needed, as nobody writes it
                break
            return value, pos
    raise BundleError("a number is malformed")


# -- the three kinds of protobuf messages


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """:return: field number and value (int for varints and fixed sizes) of a protobuf message"""
    pos = 0
    while pos < len(data):
        key, pos = _varint(data, pos)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, pos = _varint(data, pos)
        elif wire_type in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, pos = _varint(data, pos)
            if pos + size > len(data):
                raise BundleError("a protobuf message is cut off")
            value = data[pos : pos + size]
            pos += size
            if wire_type != 2:
                value = int.from_bytes(value, "little")
        else:
            raise BundleError(f"a protobuf message has a field of wire type {wire_type}")
        yield number, value


def _int_fields(data: bytes, names: dict[int, str], ignored: frozenset[int]) -> dict[str, int]:
    """:return: the integer fields of a message by name, 0 where absent (as in proto3)"""
    values = dict.fromkeys(names.values(), 0)
    for number, value in _fields(data):
        if number in names:
            if not isinstance(value, int):
                raise BundleError(f"the field {names[number]} of a protobuf message has the wrong type")
            values[names[number]] = value
        elif number not in ignored:
            raise BundleError(f"a protobuf message has the unknown field {number}")
    return values


def _parse_header(data: bytes) -> int:
    """BundleHeaderProto. :return: number of shards"""
    header = _int_fields(data, {1: "num_shards", 2: "endianness"}, frozenset([3]))
    if header["endianness"] != 0:
        raise BundleError("it was written on a big-endian machine, which is not supported")
    for number, value in _fields(data):
        if number == 3 and isinstance(value, bytes):  # VersionDef
            min_consumer = _int_fields(value, {1: "producer", 2: "min_consumer"}, frozenset([3]))["min_consumer"]
            if min_consumer > 1:
                raise BundleError(f"it has version {min_consumer} of the format; this is a reader of version 1")
    if not 1 <= header["num_shards"] < 100_000:
        raise BundleError(f"it has {header['num_shards']} shards")
    return header["num_shards"]


def _parse_entry(key: bytes, data: bytes) -> BundleEntry | None:
    """:return: BundleEntryProto; None for a part of a partitioned variable, whose main entry says ``sliced``"""
    if key.startswith(b"\0"):  # OrderedCode of a name and a slice; names have no zero bytes
        return None
    try:
        name = key.decode("utf8")
    except UnicodeDecodeError:
        raise BundleError(f"the name {key!r} is not UTF-8") from None
    names = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "crc"}
    values = _int_fields(data, names, frozenset([2, 7]))
    shape: list[int] = []
    sliced = False
    for number, value in _fields(data):
        if number == 2:
            shape.extend(_parse_shape(name, value))
            if len(shape) > _MAX_RANK:
                raise BundleError(f"the shape of {name} has more than {_MAX_RANK} dimensions")
        sliced = sliced or number == 7
    dtype = _DTYPES.get(values["dtype"]) or _OTHER_DTYPES.get(values["dtype"]) or f"type {values['dtype']}"
    return BundleEntry(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        shard=values["shard"],
        offset=values["offset"],
        size=values["size"],
        crc=values["crc"],
        sliced=sliced,
    )


def _parse_shape(name: str, data: int | bytes) -> list[int]:
    """:return: TensorShapeProto"""
    if not isinstance(data, bytes):
        raise BundleError(f"the shape of {name} has the wrong type")
    shape = []
    for number, value in _fields(data):
        if number != 2 or not isinstance(value, bytes):
            raise BundleError(f"the shape of {name} is unknown")
        size = _int_fields(value, {1: "size"}, frozenset([2]))["size"]
        if size >= 2**63:
            raise BundleError(f"the shape of {name} has an unknown size")
        shape.append(size)
    return shape
