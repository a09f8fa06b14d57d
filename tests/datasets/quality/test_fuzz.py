"""Damaged files of official databases: a database or an error of one line, whichever byte is wrong."""

import random

import numpy as np
import pytest
from quality_databases import LOADERS, MAKERS

from oodbench.errors import OodbenchError

TABLES = (".mat", ".xlsx", ".csv", ".txt")
EXAMPLES = 60


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Some bytes are changed, left out, or there twice."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 20))):
        place = chance.randrange(len(found))
        how = chance.randrange(3)
        if how == 0:
            found[place] = chance.randrange(256)
        elif how == 1:
            del found[place : place + chance.choice((1, 4, 100))]
        else:
            found[place:place] = found[place : place + chance.choice((1, 8, 200))]
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("error")
def test_damaged_tables_give_a_database_or_an_error_of_one_line(tmp_path, name):
    MAKERS[name](tmp_path)
    tables = [path for path in sorted(tmp_path.rglob("*")) if path.suffix in TABLES]
    refused = []
    for example in range(EXAMPLES):
        chance = random.Random(example)
        path = chance.choice(tables)
        before = path.read_bytes()
        path.write_bytes(damaged(before, chance))
        try:
            found = LOADERS[name](data=tmp_path)
        except OodbenchError as error:
            refused.append(str(error))
        else:
            assert np.isfinite(found.scores).all()
            assert len(found) == len(found.distorted)
        path.write_bytes(before)
    assert len(refused) > EXAMPLES // 5
    assert [message for message in refused if "\n" in message or not message.strip()] == []
