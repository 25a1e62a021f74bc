"""Writer of TensorFlow checkpoints (TensorBundle), the counterpart of ``tools.tf_conversion.bundle``, for tests."""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np

_DTYPE_NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}


def mask_crc(crc: int) -> int:
    return (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def varint(n: int) -> bytes:
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def message(*fields: tuple[int, int | bytes | None]) -> bytes:
    """Protobuf: ints as varints (0 is left out, as in proto3), bytes as sub-messages."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        elif value:
            out += varint(number << 3) + varint(value)
    return out


def entry(*, dtype: int, shape: tuple[int, ...], shard: int, offset: int, size: int, crc: int) -> bytes:
    dims = b"".join(message((2, message((1, dim)))) for dim in shape)
    fixed = varint(6 << 3 | 5) + struct.pack("<I", crc)
    return message((1, dtype), (2, dims), (3, shard), (4, offset), (5, size)) + fixed


def block(items: list[tuple[bytes, bytes]], *, restart_interval: int = 16, compression: int = 0) -> bytes:
    """A LevelDB block with its trailer."""
    out, restarts, last_key = b"", [], b""
    for i, (key, value) in enumerate(items):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last_key)) and key[shared] == last_key[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last_key = key
    restarts = restarts or [0]
    out += b"".join(struct.pack("<I", pos) for pos in restarts) + struct.pack("<I", len(restarts))
    out += bytes([compression])
    return out + struct.pack("<I", mask_crc(google_crc32c.value(out)))


def table(items: list[tuple[bytes, bytes]], *, items_per_block: int = 40, compression: int = 0) -> bytes:
    """A LevelDB table file."""
    items = sorted(items)
    data, index = b"", []
    for start in range(0, len(items), items_per_block):
        part = items[start : start + items_per_block]
        raw = block(part, compression=compression)
        index.append((part[-1][0] + b"\xff", varint(len(data)) + varint(len(raw) - 5)))
        data += raw
    handles = b""
    for raw in (block([]), block(index, restart_interval=1)):
        handles += varint(len(data)) + varint(len(raw) - 5)
        data += raw
    return data + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = message((1, 1), (3, message((1, 1))))


def write_bundle(prefix: str, variables: dict[str, np.ndarray], *, num_shards: int = 1, **table_opts) -> None:
    """
    :param prefix: of the files
    :param variables: by name; distributed over the shards in turn
    """
    shards = [bytearray() for _ in range(num_shards)]
    items = [(b"", message((1, num_shards), (3, message((1, 1)))))]
    for i, name in enumerate(sorted(variables)):
        value = np.asarray(variables[name])
        raw = value.tobytes()
        shard = shards[i % num_shards]
        described = entry(
            dtype=_DTYPE_NUMBERS[value.dtype.name],
            shape=value.shape,
            shard=i % num_shards,
            offset=len(shard),
            size=len(raw),
            crc=mask_crc(google_crc32c.value(raw)),
        )
        items.append((name.encode("utf8"), described))
        shard += raw
    with open(f"{prefix}.index", "wb") as file:
        file.write(table(items, **table_opts))
    for i, shard in enumerate(shards):
        with open(f"{prefix}.data-{i:05d}-of-{num_shards:05d}", "wb") as file:
            file.write(shard)
