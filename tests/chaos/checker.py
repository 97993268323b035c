"""
Eight points that must hold of every history, whatever went wrong in it.

Each compares what the fake AWS knows to be true with what the lives were told and what was written down. Plain
functions of a `History`: a doctored one shows that each can turn red.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import attrs

from fargate_runner import Attempt, Job, JobResult, Kind, Retry
from fargate_runner._journal import Page
from tests.chaos.harness import History, Placed

__all__ = ["POINTS", "Violation", "violations"]

POINTS: Final = {
    0: "nobody is told an error that is not true, and no life is without end",
    1: "each attempt of a key is started once",
    2: "of a key one task is alive at a time",
    3: "each key has one final record, and everybody is told that one",
    4: "what is told is true, or is said to be unknown with good reason",
    5: "nothing is left running",
    6: "lines are read whole and in order",
    7: "no more is asked than AWS gives",
    8: "who is told of ends is told of each once",
}

_CLOCKS: Final = 2.0
"""Seconds that a look may be late."""
_SEEN_WITHIN: Final = 120.0
"""Seconds within which a living client surely sees an end, or sends a launch again, and writes it down."""
_KEPT: Final = 3600.0
"""Seconds that ECS keeps a stopped task."""
_REPLAYED: Final = 55 * 60.0
_SILENCE: Final = 60.0
"""Seconds without any answer after which a client may have given up something."""


@attrs.frozen
class Violation:
    """What did not hold."""

    point: int
    said: str

    def __str__(self) -> str:
        return f"point {self.point} ({POINTS[self.point]}): {self.said}"


def violations(history: History) -> list[Violation]:
    """Return everything that did not hold."""
    points = (
        wrong,
        started_twice,
        alive_together,
        recorded,
        untrue,
        left_running,
        unread,
        asked_too_much,
        told_of_ends,
    )
    return [Violation(number, said) for number, point in enumerate(points) for said in point(history)]


def wrong(history: History) -> Iterator[str]:
    """Point 0: what the lives themselves found wrong."""
    yield from history.wrong


def started_twice(history: History) -> Iterator[str]:
    """Point 1."""
    by_token: dict[tuple[str, str], list[Placed]] = defaultdict(list)
    by_attempt: dict[tuple[str, int], list[Placed]] = defaultdict(list)
    for placed in history.tasks:
        by_token[placed.truth.token or "", placed.key].append(placed)
        by_attempt[placed.key, placed.attempt].append(placed)
    for (token, _), several in by_token.items():
        if not token or len(several) > 1:
            yield f"the token {token!r} started {_names(several)}"
    for (key, attempt), several in by_attempt.items():
        if len(several) > 1:
            yield f"attempt {attempt} of {key} was started {len(several)} times: {_names(several)}"


def alive_together(history: History) -> Iterator[str]:
    """Point 2."""
    for key in history.jobs:
        spans = sorted((_alive(placed), placed) for placed in history.tasks if placed.key == key)
        for (one, first), (other, second) in pairwise(spans):
            if one[1] > other[0]:
                lasted = min(one[1], other[1]) - other[0]
                yield f"{key}: {_names([first, second])} were alive together for {lasted:.1f} s from {other[0]:.1f} s"


def _alive(placed: Placed) -> tuple[float, float]:
    """From the launch until the task is STOPPED."""
    truth = placed.truth
    return truth.accepted_at, math.inf if truth.stopped_at is None else truth.stopped_at


def recorded(history: History) -> Iterator[str]:
    """Point 3."""
    for key in history.jobs:
        pages = [page for page in history.pages.get(key, []) if page is not None]
        final = list(_final_records(pages))
        last = history.pages[key][-1] if pages else None
        if len(final) != 1 or last is None or last.ended_at is None:
            yield f"{key} has {len(final)} final records, among {len(history.pages.get(key, []))} pages"
            continue
        result = final[0].result
        for told in history.told:
            if told.key == key and told.result != result:
                differs = _difference(told.result, result)
                yield f"life {told.life} was told another end of {key} than is written down: {differs}"
        # A key that nobody has chosen is nobody's to ask for again.
        if history.jobs[key].key is not None and not any(told.key == key for told in history.told):
            yield f"nobody was told how {key} ended"


def _final_records(pages: list[Page]) -> Iterator[Page]:
    """Yield the final records that were written, without the notes on them of who is told of the end."""
    before: Page | None = None
    for page in pages:
        if page.ended_at is None:
            continue
        bare = attrs.evolve(page, callback=None, revision=0)
        is_note = before is not None and before.callback != page.callback
        if not (is_note and before is not None and bare == attrs.evolve(before, callback=None, revision=0)):
            yield page
        before = page


def untrue(history: History) -> Iterator[str]:
    """Point 4."""
    placed = {task.truth.arn: task for task in history.tasks}
    for key, job in history.jobs.items():
        page = _final(history, key)
        if page is None or page.result is None:
            continue
        for attempt in page.result.attempts:
            task = placed.get(attempt.address or "")
            if said := _untrue(history, job, attempt, task, page):
                yield f"{key}, attempt {attempt.number}: {said}"
        yield from _unaccounted(history, key, page.result)
        if said := _undecided(history, job, page.result):
            yield f"{key}: {said}"
    given_up = _given_up(history)
    for task in history.tasks:
        if task.truth.arn not in given_up:
            yield from _overdue(history, task)


def _untrue(history: History, job: Job, attempt: Attempt, task: Placed | None, page: Page) -> str:
    outcome, key = attempt.outcome, page.key
    said = f"said to be {outcome.kind.value} ({outcome.detail})"
    if task is None:
        if attempt.address is not None:
            return f"{said} at {attempt.address}, which never was"
        mine = [other for other in history.tasks if other.key == key]
        started = [other for other in mine if other.truth.token == attempt.token and attempt.token]
        if outcome.kind is Kind.UNKNOWN:
            return "" if _launch_in_doubt(history, key, attempt) else f"{said}, without a reason"
        if outcome.kind not in {Kind.NEVER_STARTED, Kind.CANCELLED} or started:
            return f"{said} and never placed; its token started {_names(started)}"
        return ""
    if (task.key, task.attempt) != (key, attempt.number):
        return f"its task is of {task.key}, attempt {task.attempt}"
    truth, main = task.truth, task.truth.containers["main"]
    if round(attempt.memory_gib * 1024) != task.memory_mib:
        return f"said to have {attempt.memory_gib} GiB, and had {task.memory_mib} MiB"
    if outcome.kind is Kind.UNKNOWN:
        return "" if _end_in_doubt(history, key, task) else f"{said}, without a reason; it was {_told(task)}"
    if truth.status != "STOPPED":
        return f"{said}, and it is {truth.status}"
    if outcome.exit_code is not None and outcome.exit_code != main.exit_code:
        return f"{said} with exit code {outcome.exit_code}; it was {main.exit_code}"
    if outcome.kind not in _true_kinds(history, job, task):
        return f"{said}; it was {_told(task)}"
    return ""


def _true_kinds(history: History, job: Job, task: Placed) -> set[Kind]:
    """What may be said of a task that has ended."""
    truth, main = task.truth, task.truth.containers["main"]
    if truth.stop_code == "TaskFailedToStart":
        return {Kind.NEVER_STARTED}
    if truth.stop_code in {"SpotInterruption", None}:
        return {Kind.INTERRUPTED}
    if truth.stop_code == "UserInitiated":
        return _as_asked(history, job, task)
    assert job.command is not None
    if job.command[0] == "oom" and main.exit_code == 137:
        return {Kind.OUT_OF_MEMORY}
    return {Kind.SUCCEEDED} if main.exit_code == 0 else {Kind.FAILED}


def _as_asked(history: History, job: Job, task: Placed) -> set[Kind]:
    """As what the end of a task that was told to stop may count."""
    truth, main = task.truth, task.truth.containers["main"]
    kinds: set[Kind] = set()
    if task.key in history.cancelled:
        kinds.add(Kind.CANCELLED)
    over = main.ended_at if main.ended_at is not None else truth.stopped_at or math.inf
    if main.started_at is None:
        if over - truth.accepted_at >= job.start_timeout.total_seconds() - _CLOCKS:
            kinds.add(Kind.NEVER_STARTED)
    elif job.timeout is not None and over - main.started_at >= job.timeout.total_seconds() - _CLOCKS:
        kinds.add(Kind.TIMED_OUT)
    return kinds


def _overdue(history: History, task: Placed) -> Iterator[str]:
    """Tasks that ran on although their time was up, and somebody was there to stop them."""
    job, truth, main = history.jobs[task.key], task.truth, task.truth.containers["main"]
    slack = _SEEN_WITHIN + job.stop_timeout.total_seconds()
    if main.started_at is None:
        due, over = truth.accepted_at + job.start_timeout.total_seconds(), truth.stopped_at
    elif job.timeout is not None:
        due, over = main.started_at + job.timeout.total_seconds(), main.ended_at
    else:
        return
    for span in history.spans:
        late = max(due, span.begun, task.hidden_until) + slack
        ran_on = late < span.ended and (over is None or over > late)
        if span.key == task.key and ran_on and not _was_silent(history, due, late):
            yield f"{task.key}: {_names([task])} ran on although life {span.life} should have stopped it"
            return


def _end_in_doubt(history: History, key: str, task: Placed) -> bool:
    """Whether it may be unknown how a task ended: nobody looked while ECS kept it, or ECS did not answer."""
    truth = task.truth
    over = math.inf if truth.stopped_at is None else truth.stopped_at
    if truth.stop_code == "EssentialContainerExited" and truth.containers["main"].exit_code is None:
        return True  # AWS itself does not know
    if _was_silent(history, truth.accepted_at, over + _SEEN_WITHIN):
        return True
    return math.isfinite(over) and not _was_watched(history, key, max(over, task.hidden_until), over + _KEPT)


def _launch_in_doubt(history: History, key: str, attempt: Attempt) -> bool:
    """Whether it may be unknown what came of a launch: nobody was there to send it again, or AWS did not answer."""
    launched = [
        history.at(page.launched_at)
        for page in history.pages[key]
        if page is not None
        and page.launch is not None
        and page.launched_at is not None
        and page.launch.token == attempt.token
    ]
    if not launched:
        return False
    begun = min(launched)
    if _was_silent(history, begun, begun + 10 * _SEEN_WITHIN):
        return True
    return not _was_watched(history, key, begun, begun + _REPLAYED)


def _was_watched(history: History, key: str, begun: float, ended: float) -> bool:
    """Whether one life looked after a key for long enough between two moments, and AWS answered it."""
    return any(
        after - before >= _SEEN_WITHIN
        for span in history.spans
        if span.key == key
        for before, after in _answered(history, max(span.begun, begun), min(span.ended, ended))
    )


def _answered(history: History, begun: float, ended: float) -> Iterator[tuple[float, float]]:
    """Split the time between two moments where AWS was silent: who looks then sees nothing."""
    for silent, spoke in sorted(_silences(history)):
        if silent < ended and spoke > begun:
            yield begun, silent
            begun = max(begun, spoke)
    yield begun, ended


def _was_silent(history: History, begun: float, ended: float) -> bool:
    return any(b < ended and e > begun for b, e in _silences(history))


def _silences(history: History) -> list[tuple[float, float]]:
    return [(begun, ended) for begun, ended in history.silences if ended - begun >= _SILENCE]


def _unaccounted(history: History, key: str, result: JobResult) -> Iterator[str]:
    """Tasks that were started, and of which the record says nothing."""
    known = {attempt.address for attempt in result.attempts}
    doubtful = {attempt.token for attempt in result.attempts if attempt.outcome.kind is Kind.UNKNOWN}
    for task in history.tasks:
        if task.key == key and task.truth.arn not in known and task.truth.token not in doubtful:
            yield f"{key}: the record says nothing of {_names([task])}"


def _undecided(history: History, job: Job, result: JobResult) -> str:
    """Say what is wrong with the number of attempts: none too few, none too many."""
    policy = job.retry
    assert isinstance(policy, Retry)
    numbers = [attempt.number for attempt in result.attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        return f"its attempts are numbered {numbers}"
    for count in range(1, len(result.attempts)):
        decision = policy.decide(_grown(job, result, count), result.attempts[:count])
        if not decision.again:
            return f"attempt {count + 1} should not have been: {decision.why}"
    if result.key in history.cancelled:
        return ""
    decision = policy.decide(_grown(job, result, len(result.attempts)), result.attempts)
    if decision.again:
        return (
            f"it was given up too early, after {[str(a.outcome.kind.value) for a in result.attempts]}: {decision.why}"
        )
    sizes = [attempt.memory_gib for attempt in result.attempts]
    for (one, other), attempt in zip(pairwise(sizes), result.attempts, strict=False):
        if (attempt.outcome.kind is Kind.OUT_OF_MEMORY) != (other > one):
            return f"its attempts had {sizes} GiB"
    return ""


def _grown(job: Job, result: JobResult, count: int) -> Job:
    last = result.attempts[count - 1]
    return job.with_(vcpu=last.vcpu, memory_gib=last.memory_gib)


def left_running(history: History) -> Iterator[str]:
    """Point 5."""
    excused = _given_up(history)
    for task in history.tasks:
        if task.truth.status != "STOPPED" and task.truth.arn not in excused:
            yield f"{_names([task])} of {task.key} is {task.truth.status} at the end of all lives"
    for orphan in history.left:
        if orphan.arn not in excused:
            yield f"life {orphan.life} left, and {orphan.arn} of {orphan.key} was alive"


def _given_up(history: History) -> set[str]:
    """The tasks of which the record says that nobody knows how they ended, because AWS was silent."""
    excused: set[str] = set()
    for key in history.jobs:
        page = _final(history, key)
        for attempt in page.attempts if page is not None else ():
            if attempt.outcome.kind is Kind.UNKNOWN:
                mine = [task.truth for task in history.tasks if task.key == key]
                excused |= {truth.arn for truth in mine if truth.token == attempt.token}
    return excused


def unread(history: History) -> Iterator[str]:
    """Point 6."""
    placed = {task.truth.arn: task for task in history.tasks}
    for reading in history.readings:
        page = _final(history, reading.key)
        result = page.result if page is not None else None
        if result is None or any(attempt.outcome.kind is Kind.UNKNOWN for attempt in result.attempts):
            continue
        written = [line for attempt in result.attempts for line in _written(placed, attempt)]
        read = list(reading.lines)
        if read != written and (history.in_order or sorted(read) != sorted(written)):
            yield f"life {reading.life} read of {reading.key} {_lines(reading.lines)}, and it wrote {_lines(written)}"
    for key in history.jobs:
        page = _final(history, key)
        for attempt in page.attempts if page is not None else ():
            lines = [line.text for line in attempt.last_lines]
            if attempt.logs_complete and attempt.outcome.kind is not Kind.UNKNOWN:
                written = _written(placed, attempt)[-50:]
                if lines != written:
                    said = f"the last lines of {key}, attempt {attempt.number}, are {_lines(lines)}"
                    yield f"{said}, and it wrote {_lines(written)}"


def _written(placed: dict[str, Placed], attempt: Attempt) -> list[str]:
    task = placed.get(attempt.address or "")
    return list(task.truth.containers["main"].lines) if task is not None else []


def _lines(lines: object) -> str:
    assert isinstance(lines, (list, tuple))
    return f"{len(lines)} lines ({lines[0]} … {lines[-1]})" if lines else "no lines"


def asked_too_much(history: History) -> Iterator[str]:
    """Point 7."""
    for bucket, times in history.refused.items():
        yield f"AWS turned {times} calls away that drew on {bucket}"
    for bucket, (most, published) in history.peaks.items():
        if most > published:
            yield f"{most} calls within a second drew on {bucket}, which gives {published:g}"

    for token, times in history.sent_again.items():
        if times:
            yield f"the token {token[:6]} was sent {times} times more by a life that knew of its refusal"


def told_of_ends(history: History) -> Iterator[str]:
    """Point 8: nobody can do that who is killed between the message and the note that it was sent."""
    for key, job in history.jobs.items():
        page, sent = _final(history, key), [told for told in history.sent if told.key == key]
        result = page.result if page is not None else None
        if result is None:
            if sent:
                yield f"{sent[0].life} told of the end of {key}, which has none"
            continue
        for told in sent:
            if told.result != result:
                yield f"{told.life} told of another end of {key}: {_difference(told.result, result)}"
        again = [told for told in sent if told.life not in history.killed]
        if len(again) > 1:
            yield f"of the end of {key} was told {len(again)} times, by {', '.join(told.life for told in again)}"
        if again and history.noted.get(key) != again[0].life:
            yield f"{again[0].life} told of the end of {key}, and did not write that down"
        # Nobody has chosen the keys of those that one call launched, and their events are not a function's business.
        if job.key is not None and result.attempts[-1].address in history.taken and not sent:
            yield f"the event of the end of {key} was taken, and nobody told"


def _final(history: History, key: str) -> Page | None:
    return next((page for page in history.pages.get(key, []) if page is not None and page.ended_at is not None), None)


def _names(tasks: list[Placed]) -> str:
    return " and ".join(f"task {task.truth.arn[-6:]} (attempt {task.attempt})" for task in tasks) or "nothing"


def _told(task: Placed) -> str:
    truth = task.truth
    main = truth.containers["main"]
    return f"{truth.status}, {truth.stop_code}, {truth.stopped_reason!r}, exit code {main.exit_code}"


def _difference(one: JobResult, other: JobResult | None) -> str:
    if other is None:
        return "nothing"
    names = [field.name for field in attrs.fields(JobResult)]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return ", ".join(f"{name}: {a!r:.300} and {b!r:.300}" for name, (a, b) in pairs.items() if a != b)
