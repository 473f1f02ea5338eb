#!/usr/bin/env python3
"""How long the instruction cache takes to answer, by how many records it has: one row for each number.

    lookup.py                          10 to 100,000 records
    lookup.py 1000000                  other numbers

hit, miss: is there a record of this key? new record: a step is written down. why: what differs from the nearest record.
All in a fresh store in a temporary folder, in microseconds, medians of many.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cache.index import Index, Place, Record, key
from cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.reasons import Part

STEPS = 20
ROUNDS = 400


def parts_of(number: int) -> list[Part]:
    """The parts of a RUN: what it stands on, its command, some variables."""
    words = [
        ("parent", f"sha256:{abs(number):064x}"),
        ("argv 0", "/bin/sh"),
        ("argv 1", "-c"),
        ("argv 2", f"make {number}"),
    ]
    return [*words, *((f"env V{n}", f"{n}") for n in range(8))]


def place_of(number: int) -> Place:
    """A thousand builds with as many versions of each of their steps as it takes."""
    return Place(f"/src/{number // STEPS % 1000}", "build", number % STEPS, f"RUN make {number % STEPS}")


def fill(store: Store, index: Index, start: int, end: int) -> None:
    """Records with these numbers, written in one transaction."""
    with store.database.transaction():
        for number in range(start, end):
            parts = parts_of(number)
            index.record(Record(key(parts), None, 0, 0, 1.0, 0.5), parts, place_of(number))


def micro(act: Callable[[int], object], numbers: range) -> float:
    """The median time of an act, in microseconds."""
    times = []
    for number in numbers:
        started = time.perf_counter()
        act(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def measured(store: Store, index: Index, records: int) -> tuple[float, ...]:
    """The medians of all four among so many records; there are more of them then."""
    keys = [key(parts_of(number * 7919 % records)) for number in range(ROUNDS)]

    def write(number: int) -> None:
        fill(store, index, records + number, records + number + 1)

    return (
        micro(lambda number: index.lookup(keys[number]), range(ROUNDS)),
        micro(lambda number: index.lookup(f"{number:064x}"), range(ROUNDS)),
        micro(lambda number: index.why(place_of(number * 7919 % records), parts_of(-number)), range(1, ROUNDS)),
        micro(write, range(ROUNDS)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("records", nargs="*", type=int, default=[10, 100, 1000, 10_000, 100_000])
    options = parser.parse_args()
    print(f"{'records':>10}{'hit':>12}{'miss':>12}{'why':>12}{'new record':>12}{'MB':>8}")
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "store")) as store:
        index = Index(store.database)
        done = 0
        for wanted in sorted(options.records):
            fill(store, index, done, wanted)
            row = measured(store, index, wanted)
            done = wanted + ROUNDS
            size = (Path(folder) / "store" / "pybuild.db").stat().st_size / 1e6
            print(f"{wanted:>10,}" + "".join(f"{value:>12.1f}" for value in row) + f"{size:>8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
