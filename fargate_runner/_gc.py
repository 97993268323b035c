"""A first use is cheap only while nobody looks for garbage in it."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["no_gc"]


@contextmanager
def no_gc() -> Generator[None]:
    """
    Look for no garbage while modules are loaded and clients made, which leave none: that would be a fifth of the time.

    What they made is old at once; young, it would be looked at again and again. Unless somebody froze what they have:
    that is to stay as it is.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if gc.get_freeze_count() == 0:
                gc.freeze()  # costs nothing: the young ones join the frozen, and those the old ones
                gc.unfreeze()
            gc.enable()
