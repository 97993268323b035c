"""A seed from its number to a verdict that can be sent between processes."""

from __future__ import annotations

import time
from collections import Counter

import attrs

from tests.chaos.checker import Violation, violations
from tests.chaos.harness import live_through

__all__ = ["Seed", "run"]


@attrs.frozen
class Seed:
    """What came of a seed, small enough to be sent between processes."""

    seed: int
    violations: tuple[Violation, ...]
    counts: Counter[str]
    digest: str
    seconds: float


def run(seed: int) -> Seed:
    """Live a seed, and check what happened."""
    begun = time.perf_counter()
    try:
        history = live_through(seed)
        found = tuple(violations(history))
    except Exception as exc:
        return Seed(seed, (Violation(0, f"the harness broke: {exc!r}"),), Counter(), "", time.perf_counter() - begun)
    return Seed(seed, found, history.counts, history.digest, time.perf_counter() - begun)
