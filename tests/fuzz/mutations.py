"""Seeded damage: bytes, tar headers with valid checksums, and JSON values, each a pure function of the generator."""

import copy
import json
import random
import tarfile

INTERESTING_INTS = (-1, 0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**70)
INTERESTING_TEXTS = ("", ".", "..", "../x", "/etc/passwd", "a" * 3000, "\0", "\x1b[2J", "ü\u202e", "\ud800", "pipe:id")
INTERESTING_TEXTS += ("s3://bucket/x", "file:///etc/passwd", "{0..9}", "*", "%00", "nan", "beit-token-store", "1e999")
INTERESTING_VALUES = (None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [None], {"a": 1}, [[]])
INTERESTING_VALUES += (*INTERESTING_INTS, *INTERESTING_TEXTS)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Apply one to four random edits."""
    buffer = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_EDITS)(buffer, rng)
    return bytes(buffer)


def _flip(buffer, rng):
    if buffer:
        buffer[rng.randrange(len(buffer))] ^= 1 << rng.randrange(8)


def _overwrite(buffer, rng):
    start, length = _span(buffer, rng)
    buffer[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def _remove(buffer, rng):
    start, length = _span(buffer, rng)
    del buffer[start : start + length]


def _insert(buffer, rng):
    buffer[rng.randint(0, len(buffer)) : 0] = rng.randbytes(rng.choice((1, 4, 100, 512)))


def _repeat(buffer, rng):
    start, length = _span(buffer, rng)
    buffer[start:start] = buffer[start : start + length] * rng.randint(1, 3)


def _cut(buffer, rng):
    del buffer[rng.randint(0, len(buffer)) :]


def _number(buffer, rng):
    width = rng.choice((2, 4, 8))
    value = rng.choice(INTERESTING_INTS) % 256**width
    start = rng.randint(0, max(0, len(buffer) - width))
    buffer[start : start + width] = value.to_bytes(width, rng.choice(("little", "big")))


_EDITS = (_flip, _flip, _overwrite, _remove, _insert, _repeat, _cut, _number)


def _span(buffer, rng):
    start = rng.randint(0, len(buffer))
    return start, min(rng.choice((1, 2, 8, 60, 512, 5000)), len(buffer) - start)


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """Damage a tar: any bytes, or fields of a header whose checksum is then made to fit, so that a walk believes it."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    buffer = bytearray(data)
    headers = [start for start in range(0, len(buffer), 512) if buffer[start + 257 : start + 262] == b"ustar"]
    for start in rng.choices(headers, k=rng.randint(1, 3)):
        field, width = rng.choice(((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
        buffer[start + field : start + field + width] = _field(field, width, rng)
        buffer[start + 148 : start + 156] = b" " * 8
        buffer[start + 148 : start + 156] = b"%06o\0 " % (sum(buffer[start : start + 512]) & 0o777777)
    return bytes(buffer)


def _field(field: int, width: int, rng: random.Random) -> bytes:
    if field == 156:
        return rng.choice((b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"V", b"?"))
    if field == 124:
        number = rng.choice(INTERESTING_INTS)
        octal = b"%o" % (abs(number) % 8**11)
        return rng.choice(
            (octal.ljust(12, b"\0"), b"\x80" + (abs(number) % 2**88).to_bytes(11, "big"), b"-1 " + b"\0" * 9)
        )
    text = rng.choice((*INTERESTING_TEXTS, "k001.jpg", "k001.json", "__meta__", "._k.jpg", "a/b.c/d.jpg", "k.", ".jpg"))
    return text.encode("utf-8", "surrogatepass")[:width].ljust(width, b"\0")


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Damage a JSON document: any bytes, or values, keys and entries of a document that stays valid JSON."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    document = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        _mutate_value(document, rng)
    return json.dumps(document).encode()


def mutate_pairs(document: dict, rng: random.Random) -> dict:
    """Damage nested mappings in place and return them."""
    for _ in range(rng.randint(1, 3)):
        _mutate_value(document, rng)
    return document


def _mutate_value(document, rng):
    """Walk to a random place of nested dicts and lists and change, remove or add something there."""
    while isinstance(document, dict | list) and document:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = rng.choice(keys)
        if isinstance(document[key], dict | list) and document[key] and rng.random() < 0.8:
            document = document[key]
            continue
        action = rng.random()
        if action < 0.7:
            document[key] = copy.deepcopy(rng.choice(INTERESTING_VALUES))
        elif action < 0.85:
            del document[key]
        elif isinstance(document, dict):
            document[rng.choice(INTERESTING_TEXTS)] = copy.deepcopy(rng.choice(INTERESTING_VALUES))
        else:
            document.append(copy.deepcopy(rng.choice(INTERESTING_VALUES)))
        return


def tar_of(members: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a complete tar."""
    blocks = []
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        blocks += [info.tobuf(tar_format), data, bytes(-len(data) % 512)]
    return b"".join([*blocks, bytes(1024)])
