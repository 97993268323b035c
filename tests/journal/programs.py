"""
Programs that write a journal, for tests that need several processes, or one to kill.

``python -m tests.journal.programs <what> <file> …``
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import anyio
import attrs

from fargate_runner._journal import Overtaken, SqliteJournal
from tests.journal.contract import increment
from tests.journal.samples import page


def say(words: str) -> None:
    os.write(1, f"{words}\n".encode())  # at once, and whole


async def count(path: str, times: int) -> None:
    """Count up a page that all write, all beginning at the same moment, with a file that is not there yet."""
    say("ready")
    sys.stdin.readline()
    async with SqliteJournal(path) as journal:
        await journal.bind("default")
        with suppress(Overtaken):
            await journal.write(page(name="0"))
        for _ in range(times):
            await increment(journal, "job")


async def write(path: str, name: str) -> None:
    """Write pages, several at a time and again and again, and say each one that is written, until killed."""

    async def keep(number: int) -> None:
        done = 0
        while True:
            key = f"{name}/{number}/{done}"
            written = await journal.write(page(key))
            say(f"{key} 1")
            await journal.write(attrs.evolve(written, name="changed"))
            say(f"{key} 2")
            done += 1

    async with SqliteJournal(path) as journal:
        await journal.bind("default")
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(keep, number)


def nursery(path: str) -> None:
    """Start a writer for each line that comes in, and wait for its end, which is somebody else's doing."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            anyio.run(write, path, line.strip())
        say(f"pid {child}")
        os.waitpid(child, 0)
        say("gone")


if __name__ == "__main__":
    what, file, *words = sys.argv[1:]
    if what == "count":
        anyio.run(count, file, int(words[0]))
    else:
        nursery(file)
