"""What Weights & Biases wrote offline: a reader of its `.wandb` files.

The format is LevelDB's log (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of seven
bytes: blocks of 32 KiB; chunks of checksum (4 bytes), length (2), kind (1) and data; a record is one whole chunk, or a
first, middle ones and a last. Records are messages of wandb's own protobuf.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32 * 1024, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each chunk."""
    position = HEADER
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block that no chunk fits in
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            return
        yield kind, data[position + HEADER : position + HEADER + length]
        position += HEADER + length


def records(path: Path) -> Iterator[object]:
    """The records of a file, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    parts: list[bytes] = []
    for kind, content in chunks(data):
        parts = [content] if kind in (FULL, FIRST) else [*parts, content]
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            yield record


def history(path: Path) -> list[dict]:
    """What was logged, a dict for each call, by the names under which it was logged."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            found.append({})
            for item in record.history.item:  # of what is no plain number, each part stands by itself
                *names, last = item.nested_key or [item.key]
                place = found[-1]
                for name in names:
                    place = place.setdefault(name, {})
                place[last] = json.loads(item.value_json)
    return found
