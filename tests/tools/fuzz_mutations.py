"""How a good file is broken: bytes, blocks, tokens that parsers stumble over, and payloads that would run code."""

import copy
import gzip
import json
import random
import zlib

import yaml

# Each token has broken some parser at some time.
TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"9" * 5000,
        b"1" + b"0" * 400,
        b"1e308",
        b"-1e-320",
        b"18446744073709551616",
    ),
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"-1",
        b"0",
        b"'",
        b'"',
        b",",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n\n",
        b": ",
        b"- ",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"{" * 2000, b"- " * 2000, b"x" * 100_000, b"\n" * 5000, b"(" * 500),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"\\u0000",
        b"\xed\xa0\x80",
        b"\x1b[2J\x1b]0;x\x07",
        b"\xe2\x80\xae",
    ),
    *(b"&a [*a]", b"*a", b"&a", b"!!binary x", b"!!bool x", b"!!int ''", b"!!timestamp x", b"!!set {a, b}", b"<<: *a"),
    *(
        b"!!map [a]",
        b"!!omap {a: b}",
        b"!!str",
        b"? [a]\n: b\n",
        b"%YAML 9.9\n---\n",
        b"---\n...\n",
        b"0o777",
        b"1:1:1",
    ),
    *(
        b"<script>alert(1)</script>",
        b"{{ 7 * 7 }}",
        b"{% for i in range(99999) %}",
        b"../../../../etc/passwd",
        b"%s%n",
    ),
    *(
        b"runs/none",
        b"os:system",
        b"builtins:exec",
        b"inf",
        b"nan",
        b".inf",
        b"1e5",
        b"1_000",
        b"~",
        b"yes",
        b"2026-01-01",
    ),
)
_BOMB = b"".join(b"k%d: &k%d [%s]\n" % (i, i, b", ".join([b"*k%d" % (i - 1) if i else b"x"] * 9)) for i in range(9))


def mutate(content: bytes, rng: random.Random, name: str, canary: str) -> bytes:
    """`content` broken in one to four places; a gzipped file sometimes inside."""
    if name.endswith(".gz") and rng.random() < 0.5:
        return gzip.compress(mutate(gzip.decompress(content), rng, name.removesuffix(".gz"), canary), mtime=0)
    if rng.random() < 0.04:
        return rng.choice(payloads(canary))
    well_formed = _WELL_FORMED.get(name.rsplit(".", 1)[-1])
    if well_formed and rng.random() < 0.6:  # gets past the parser, to what trusts it
        for _ in range(rng.choice((1, 1, 2))):
            content = well_formed(content, rng)
        return content
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(_MUTATIONS)(content, rng, canary)
    return content


def payloads(canary: str) -> list[bytes]:
    """Whole files that would make the file `canary` if anybody ran them."""
    path = canary.encode()
    pickled = b"cos\nsystem\n(S'touch " + path + b"'\ntR."
    return [
        pickled,
        b"\x80\x02" + pickled,
        zipped_pickle(canary),
        b"!!python/object/apply:os.system ['touch " + path + b"']\n",
        b"a: !!python/object/new:subprocess.Popen [[touch, " + path + b"]]\n",
        b"a: !!python/name:os.system\nb: !!python/module:os\n",
        _BOMB,
        b"",
        b"\x00" * 64,
        bytes(range(256)) * 8,
    ]


def zipped_pickle(canary: str) -> bytes:
    """What `torch.save` of an object makes whose reading calls os.system."""
    import io
    import os

    import torch

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    stream = io.BytesIO()
    torch.save({"state": Evil()}, stream)
    return stream.getvalue()


def _flip(content, rng, canary):
    at = rng.randrange(max(1, len(content)))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)] if content else b"") + content[at + 1 :]


def _set(content, rng, canary):
    at = rng.randrange(max(1, len(content)))
    return content[:at] + rng.choice((b"\x00", b"\xff", b"\x7f", b"0", b"9", b"-", b'"')) + content[at + 1 :]


def _insert(content, rng, canary):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 64))) + content[at:]


def _delete(content, rng, canary):
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 2, 8, 64, 512)) :]


def _repeat(content, rng, canary):
    at = rng.randrange(len(content) + 1)
    block = content[at : at + rng.choice((1, 4, 16, 64, 256))]
    return content[:at] + block * rng.choice((2, 2, 3, 50)) + content[at:]


def _swap(content, rng, canary):
    a, b = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return content[b:] + content[a:b] + content[:a]


def _cut(content, rng, canary):
    return content[: rng.randrange(len(content) + 1)]


def _token(content, rng, canary):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TOKENS) + content[at + rng.choice((0, 0, 1, 4)) :]


def _value(content, rng, canary):
    """Replaces a value after a colon, so that the file stays well-formed more often."""
    colons = [i for i, byte in enumerate(content[:200_000]) if byte == 0x3A]
    if not colons:
        return _token(content, rng, canary)
    at = rng.choice(colons) + 1
    end = at
    while end < len(content) and content[end] not in b",}]\n":
        end += 1
    tag = b"!!python/object/apply:os.system ['touch " + canary.encode() + b"']"
    return content[:at] + b" " + rng.choice((*TOKENS, tag)) + content[end:]


def _length(content, rng, canary):
    """A wild number where binary formats keep a length."""
    at = rng.choice((0, 0, 4, 8, max(0, len(content) - 8), max(0, len(content) - 4)))
    number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1, len(content), len(content) + 1))
    return content[:at] + number.to_bytes(8, "little") + content[at + 8 :]


def _recompress(content, rng, canary):
    return zlib.compress(content) if rng.random() < 0.5 else gzip.compress(content, mtime=0)


VALUES = (
    *(None, True, False, 0, -1, 3, 0.5, -2.5, 1e308, -1e308, 5e-324, 10**400, 2**63, float("nan"), float("inf")),
    *(
        "",
        "x",
        "\n",
        "9" * 30,
        "\ud800",
        "\x00",
        "\x1b[31m",
        "</script><img src=x onerror=a()>",
        "---\nlicense: mit\n---",
    ),
    *("x" * 20_000, "os:system", "../..", "runs/none", "LORA", "CAUSAL_LM", "{{ x }}", "nan", "1e5"),
    *(
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        {"a": {}},
        {"": None},
        [{"role": "user", "content": None}],
        [{"role": 1}],
        ["a"] * 50,
    ),
)


def _change(value, rng):
    """`value`, parsed from JSON, with one part of it replaced, left out, doubled or under another key."""
    places = []

    def walk(part):
        for key, item in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(item, dict | list):
                walk(item)

    if isinstance(value, dict | list):
        walk(value)
    if not places:
        return rng.choice(VALUES)
    part, key = rng.choice(places)
    how = rng.choice(("value", "value", "value", "value", "swap", "delete", "wrap", "key"))
    if how == "delete":
        del part[key]
    elif how == "wrap":
        part[key] = rng.choice(([part[key]], {"a": part[key]}, [part[key]] * 3))
    elif how == "swap":
        other, place = rng.choice(places)
        part[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(part[key])
    elif how == "key" and isinstance(part, dict):
        part[str(rng.choice(("", "x", key * 2, "a.b.c", "constructor", "\ud800")))] = part.pop(key)
    else:
        part[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _json(content, rng):
    try:
        return json.dumps(_change(json.loads(content), rng), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return content + b" "


def _jsonl(content, rng):
    rows = content.split(b"\n")
    at = rng.randrange(max(1, len(rows) - 1))
    rows[at] = _json(rows[at], rng)
    return b"\n".join(rows)


def _yaml(content, rng):
    try:
        return yaml.safe_dump(_change(yaml.safe_load(content), rng), allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    except (yaml.YAMLError, ValueError, RecursionError):
        return content + b"\n"


def _safetensors(content, rng):
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


_WELL_FORMED = {"json": _json, "jsonl": _jsonl, "yaml": _yaml, "safetensors": _safetensors}
_MUTATIONS = (
    *(_flip, _set, _insert, _delete, _repeat, _swap, _cut, _token, _token, _value, _value, _value, _value),
    *(_length, _recompress),
)
