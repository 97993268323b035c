"""
Many seeds, on all cores: ``python -m tests.chaos --seeds 200``.

A seed that fails is run again alone with ``--seed``; it does the same each time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.chaos.checker import POINTS
from tests.chaos.seeds import Seed, run

_COUNTED = {
    1: "duplicates",
    2: "overlaps",
    3: "lost",
    4: "wrong outcomes",
    5: "orphans",
    6: "lost lines",
    7: "over budget",
    8: "messages too many or few",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s chaos --", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with all that did not hold")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--stop", action="store_true", help="end at the first that fails")
    options = parser.parse_args(argv)
    if options.seed is not None:
        seeds: Iterable[int] = [options.seed]
        options.jobs = 1
    else:
        seeds = range(options.first, options.first + options.seeds)
    return _report(seeds, options.jobs, verbose=options.seed is not None, stop=options.stop)


def _report(seeds: Iterable[int], jobs: int, *, verbose: bool, stop: bool) -> int:
    seeds = list(seeds)
    begun = said = time.perf_counter()
    total: Counter[str] = Counter()
    failed: list[Seed] = []
    for number, seed in enumerate(_run_all(seeds, jobs), 1):
        total += seed.counts
        total["seeds"] += 1
        if seed.violations:
            failed.append(seed)
            for violation in seed.violations if verbose else seed.violations[:1]:
                print(f"nox -s chaos -- --seed {seed.seed}   # {violation}", flush=True)
            for point in {violation.point for violation in seed.violations}:
                total[_COUNTED.get(point, "errors")] += 1
            if stop:
                break
        if verbose:
            print(f"seed {seed.seed}: {_said(seed.counts)}; history {seed.digest}, {seed.seconds:.2f} s")
        elif (now := time.perf_counter()) - said > 15:
            said = now
            print(
                f"… {number} of {len(seeds)} seeds, {len(failed)} failed, {number / (now - begun):.1f} seeds/s",
                flush=True,
            )
    took = time.perf_counter() - begun
    print(f"{_said(total)}; {total['seeds'] / took:.1f} seeds/s")
    for seed in failed if not verbose else ():
        points = sorted({violation.point for violation in seed.violations})
        print(f"nox -s chaos -- --seed {seed.seed}   # {', '.join(f'{point}: {POINTS[point]}' for point in points)}")
    return 1 if failed else 0


def _run_all(seeds: list[int], jobs: int) -> Iterator[Seed]:
    if jobs == 1:
        yield from map(run, seeds)
        return
    # spawn: each process has its own copy of botocore's models, and none of the parent's threads.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=4)


def _said(counts: Counter[str]) -> str:
    names = ("seeds", "lives", "kills", "freezes", "functions", "messages", "jobs", "tasks", "calls", "faults")
    parts = [f"{counts[name]:,} {name}" for name in names if counts[name]]
    parts += [f"{counts[name]:,} {name}" for name in (*_COUNTED.values(), "errors")]
    return ", ".join(parts)


if __name__ == "__main__":
    # The order of sets must not depend on the process: a seed does the same each time.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
    sys.exit(main())
