"""Random changes of a sound file: bytes, numbers at places that look like lengths, and in JSON whole values."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        0.5,
        1e308,
        2**31,
        2**63,
        10**30,
        "",
        "x",
        "../x",
        "/etc/passwd",
        "\x1b[2J",
        "\ud800",
    ),
    *([], {}, [[]], [1], {"a": 1}, float("nan"), float("inf"), "0" * 1000, "~nobody-there/x"),
)
DEEP = ("[" * 5000, '{"a":' * 5000, "-" * 5000, "9" * 5000)
WORDS = (b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"2001-99-99", b"\x00", b"\xff", b"\xed\xa0\x80", b"../")


def mutate(data: bytes, kind: str, chance: random.Random) -> bytes:
    """One to six changes of a sound input."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if kind == "json" and chance.random() < 0.7:
            data = _other_value(data, chance)
        elif kind in ("json", "yaml") and chance.random() < 0.2:
            at = chance.randrange(len(data) + 1)
            data = data[:at] + chance.choice([word.encode() for word in DEEP] + list(WORDS)) + data[at:]
        else:
            data = _other_bytes(data, chance)
    return data


def _other_value(data: bytes, chance: random.Random) -> bytes:
    """JSON with one value, anywhere in it, put in another's place."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 50)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(document, dict | list):
        walk(document)
    if not places:
        return json.dumps(chance.choice(VALUES)).encode()
    node, key = chance.choice(places)
    if isinstance(node, dict) and chance.random() < 0.2:
        node[chance.choice(("", "x", "../x", "\ud800", "model", "__metadata__"))] = node.pop(key)
    elif chance.random() < 0.2:
        del node[key]
    else:
        other, place = chance.choice(places)
        node[key] = chance.choice((chance.choice(VALUES), json.loads(json.dumps(other[place]))))
    return json.dumps(document).encode()


def _other_bytes(data: bytes, chance: random.Random) -> bytes:
    size = len(data)
    head = min(size, 4096)  # what a reader believes stands at the beginning
    at = chance.randrange(head + 1) if chance.random() < 0.8 else chance.randrange(size + 1)
    change = chance.randrange(6)
    if change == 0:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if change == 1:
        return data[:at] + struct.pack("<Q", chance.choice(NUMBERS)) + data[at + 8 :]
    if change == 2:
        return data[:at] + struct.pack("<I", chance.choice(NUMBERS) % 2**32) + data[at + 4 :]
    if change == 3:
        return data[:at]
    end = min(size, at + chance.randrange(1, 64))
    return data[:at] + data[end:] if change == 4 else data[:end] + data[at:end] + data[end:]
