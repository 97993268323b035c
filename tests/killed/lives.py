"""Starts the batch in processes of its own, and kills them: at a step, or at a moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from random import Random
from typing import Final

import anyio
import attrs

from tests.killed import batch
from tests.killed.batch import Plan, Steps

# Forked from a server that has imported everything and does nothing else: a process as any, in a tenth of the time.
_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.killed.warm"])
_ONE_AT_A_TIME: Final = threading.Lock()
"""Whoever starts a process looks after all others, and two who look take the exit code away from each other."""


@attrs.frozen
class Moment:
    """When a life is killed from outside: so many seconds after it has told of so many steps."""

    steps: int
    pause: float

    @classmethod
    def at_random(cls, chance: Random, most: int) -> Moment:
        return cls(chance.randrange(most), chance.random() * 0.02)


@attrs.frozen
class Life:
    """What became of one process."""

    killed: bool
    steps: tuple[str, ...]
    """What it did, as far as it came to tell."""


def _main(plan: Plan, pipe: Connection) -> None:
    """The life of one process."""
    os.environ |= batch.CREDENTIALS
    step = Steps(plan.kill_at, lambda name: pipe.send_bytes(name.encode()))
    anyio.run(batch.batch, plan, step)


async def live(plan: Plan, kill: Moment | None = None) -> Life:
    """Let a process live, until it ends by itself or is killed."""
    return await anyio.to_thread.run_sync(_live, plan, kill)


def _live(plan: Plan, kill: Moment | None) -> Life:
    ours, theirs = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_main, args=(plan, theirs))
    with _ONE_AT_A_TIME:
        process.start()
    theirs.close()
    told: list[str] = []
    with ours:
        while kill is None or len(told) < kill.steps:
            if (step := _next(ours)) is None:
                break
            told.append(step)
        else:
            ours.poll(kill.pause)
            process.kill()
        while (step := _next(ours)) is not None:
            told.append(step)
    with _ONE_AT_A_TIME:  # it is over already
        process.join()
    assert process.exitcode in {0, -signal.SIGKILL}, f"it ended with {process.exitcode}, after {told[-5:]}"
    killed = process.exitcode == -signal.SIGKILL
    process.close()
    return Life(killed, tuple(told))


def _next(pipe: Connection) -> str | None:
    """What it tells next; None once it is gone."""
    try:
        return pipe.recv_bytes().decode()
    except (EOFError, OSError):  # in the middle of a word, too
        return None


def how_many(name: str, default: int) -> int:
    """How often something is done: as the environment says, or what fits into every test run."""
    return int(os.environ.get(name, default))
