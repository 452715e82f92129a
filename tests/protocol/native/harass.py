"""Run by test_cbor_native.py below the sanitizers: documents whole, cut, changed, left in the middle and freed."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from chronetix.protocol import _cbor as cbor

ROUNDS = 1500
SCALARS = [
    None,
    True,
    0,
    23,
    24,
    1 << 32,
    -(1 << 64),
    (1 << 64) - 1,
    1.5,
    float("inf"),
    "",
    "t" * 300,
    "\u20ac",
    b"b" * 30,
]


def document(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(4 if depth < 5 else 2)
    if kind < 2:
        return chance.choice(SCALARS)
    inner = [document(chance, depth + 1) for _ in range(chance.randrange(5))]
    return inner if kind == 2 else {f"k{chance.randrange(400)}": item for item in inner}


def read(data: bytes, chance: random.Random) -> None:
    with suppress(cbor.CborError):
        cbor.loads(data)
    reading = cbor.Decoder(bytearray(data))
    pile: list[Any] = []
    try:
        while not reading.step(chance.randint(1, 9)):
            if chance.random() < 0.02:
                pile = reading.leavings()
                break
        else:
            pile = [reading.take()]
    except cbor.CborError:
        pile = reading.leavings()
    while not cbor.dismantle(pile, chance.randint(1, 9)):
        pass


def main() -> None:
    chance = random.Random(1)
    for _ in range(ROUNDS):
        value = document(chance)
        data = cbor.dumps(value)
        writing = cbor.Encoder([value, {1, 2}], chance.choice([20, 5000]), sorted)
        with suppress(cbor.CborError):
            while not writing.step(chance.randint(1, 9)):
                pass
            writing.take()
        changed = bytearray(data)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        for each in (data, data[: chance.randrange(len(data) + 1)], bytes(changed), chance.randbytes(9)):
            read(each, chance)
    print(cbor.__file__)


if __name__ == "__main__":
    main()
