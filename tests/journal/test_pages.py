"""The text of a page: what is written today, and what was ever written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from fargate_runner import LogLine, Retry, Rule, Secret
from fargate_runner._journal import Callback, Page, job_of, retry_to_plain
from tests.journal.samples import DESCRIPTION, INTENT, JOB, LINES, POLICY, RETRY, SAMPLES, TERMINAL

PAGES = Path(__file__).parent / "pages"

WRITTEN = {
    "v1/intent": "7f733d1b62c647e84970671ce9390a6ed1df987a70a60139f0eeae883c45f9f1",
    "v1/acknowledged": "cc179a34ad48c42f75fbb7ec7c298a2ccd9dfdab923cee60bbb66139d75beff8",
    "v1/stop-asked": "9e4b225a728aff82884e3dcc045cb3700d6de9dadc516fca0fb1d220b69391ff",
    "v1/retried": "d3534491d5feb6cf9bb96d33931eeef181ffab46d6d276a8525f787627068e85",
    "v1/terminal": "314b5171cc325133f825a745470ff3238c09c2d9a0cfc99549b358a1090c8bd9",
    # Attempts know their capacity, platform and scratch space.
    "v1-places/intent": "7f733d1b62c647e84970671ce9390a6ed1df987a70a60139f0eeae883c45f9f1",
    "v1-places/acknowledged": "cc179a34ad48c42f75fbb7ec7c298a2ccd9dfdab923cee60bbb66139d75beff8",
    "v1-places/stop-asked": "9e4b225a728aff82884e3dcc045cb3700d6de9dadc516fca0fb1d220b69391ff",
    "v1-places/retried": "2cd47faf0e22ea44e9ff5df7b095d7e0dfbd77141ed11f2b61030e875121a065",
    "v1-places/terminal": "d12945056fecb7d926cf73062d6b84fadfcf4daa55caa8a225b227172a724016",
}
"""
By file, its SHA-256. A file that is here is never changed, and never deleted: it stands for the journals of users,
which nobody rewrites. A change of the text's format brings files of its own, in a folder of its own.
"""


class TestWhatWasWritten:
    @pytest.mark.parametrize("name", WRITTEN)
    def test_a_page_of_an_older_version_is_never_changed(self, name: str) -> None:
        text = (PAGES / f"{name}.json").read_bytes()

        assert hashlib.sha256(text).hexdigest() == WRITTEN[name]

    def test_every_file_is_pinned(self) -> None:
        files = {path.relative_to(PAGES).with_suffix("").as_posix() for path in PAGES.rglob("*.json")}

        assert files == WRITTEN.keys()

    @pytest.mark.parametrize("name", WRITTEN)
    def test_it_is_read_by_todays_code(self, name: str) -> None:
        """
        The files below ``pages`` are what earlier versions wrote, and must be readable for ever.

        The rule: they are never changed. Should this fail, the code is wrong, not the file.
        """
        text = (PAGES / f"{name}.json").read_text()

        found = Page.from_json(text, revision=3)

        expected = attrs.evolve(SAMPLES[Path(name).name], revision=3)
        assert found == expected
        assert found.result == expected.result

    @pytest.mark.parametrize("name", WRITTEN)
    def test_its_job_can_be_launched_again(self, name: str) -> None:
        job, lacks_secrets = job_of(Page.from_json((PAGES / f"{name}.json").read_text(), revision=1))

        assert not lacks_secrets
        assert (job.key, job.size, job.command, job.env) == (JOB.key, JOB.size, JOB.command, JOB.env)
        assert (job.timeout, job.retry) == (JOB.timeout, POLICY)

    def test_what_the_place_needs_to_adopt_a_job_is_kept(self) -> None:
        page = Page.from_json((PAGES / "v1/acknowledged.json").read_text(), revision=1)

        assert page.ref is not None  # equality leaves these two out
        assert page.ref.description == {"size": DESCRIPTION["size"]}
        assert page.ref.created_at == SAMPLES["acknowledged"].ref.created_at  # type: ignore[union-attr]


class TestToday:
    @pytest.mark.parametrize("name", SAMPLES)
    def test_a_page_is_read_as_it_was_written(self, name: str) -> None:
        page = SAMPLES[name]

        assert Page.from_json(page.to_json(), revision=0) == page

    def test_the_newest_files_are_what_is_written_today(self) -> None:
        written = {name: page.to_json() for name, page in SAMPLES.items()}

        assert written == {name: (PAGES / f"v1-places/{name}.json").read_text() for name in SAMPLES}

    def test_whether_somebody_was_told_is_kept_beside_the_rest(self) -> None:
        at = datetime(2026, 5, 6, 12, 0, 1, 5, tzinfo=UTC)
        pages = [
            attrs.evolve(TERMINAL, callback=callback)
            for callback in (
                Callback(),
                Callback(token="t", answered=True),
                Callback(token="t", told_at=at, claimed_until=at + timedelta(minutes=1)),
            )
        ]

        assert [Page.from_json(page.to_json(), revision=0) for page in pages] == pages

    def test_of_whom_nobody_wants_to_know_is_written_as_ever(self) -> None:
        """So that versions which know of no callbacks read the page."""
        assert "callback" not in TERMINAL.to_json()

    def test_of_a_callback_it_is_read_as_it_was_first_written(self) -> None:
        written = json.loads(TERMINAL.to_json()) | {
            "callback": {
                "token": "t",
                "answered": False,
                "told_at": None,
                "claimed_until": "2026-05-06T12:01:00+00:00",
            }
        }
        found = Page.from_json(json.dumps(written), revision=1).callback

        assert found == Callback(token="t", claimed_until=datetime(2026, 5, 6, 12, 1, tzinfo=UTC))
        assert "'t'" not in repr(found)

    def test_a_description_and_a_policy_are_what_they_were(self) -> None:
        assert JOB.describe().items() >= DESCRIPTION.items()
        assert retry_to_plain(POLICY) == RETRY

    def test_last_lines_are_cut_from_the_front(self) -> None:
        lines = tuple(LogLine(text=str(n).rjust(1000, ".")) for n in range(100))
        page = attrs.evolve(TERMINAL, attempts=(attrs.evolve(TERMINAL.attempts[0], last_lines=lines),))

        found = Page.from_json(page.to_json(), revision=1)

        assert found.attempts[0].last_lines == lines[-32:]

    def test_a_policy_of_any_exit_code_stays_small(self) -> None:
        plain = retry_to_plain(Retry(rules=[Rule(then="give_up", exit_codes=range(1, 2**40))]))

        assert plain is not None
        assert plain["rules"][0]["exit_codes"] == list(range(1, 256))

    def test_a_secret_by_value_is_in_no_page_and_its_job_not_to_be_made_of_one(self) -> None:
        job = attrs.evolve(JOB, secrets={"PASSWORD": Secret("hunter2")})
        page = attrs.evolve(INTENT, description=job.describe(), launch=None)

        assert "hunter2" not in page.to_json()
        job, lacks_secrets = job_of(page)
        assert lacks_secrets
        assert "hunter2" not in repr(dict(job.secrets))


def without(parts: dict[str, Any], name: str) -> dict[str, Any]:
    return {part: value for part, value in parts.items() if part != name}


SPOILED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "of a newer version": (
        lambda parts: parts | {"version": 2},
        "version 2 of the format, and this library reads up to 1",
    ),
    "of a strange version": (lambda parts: parts | {"version": "new"}, "not a job's page"),
    "of no version": (lambda parts: without(parts, "version"), "not a job's page"),
    "with a field missing": (lambda parts: without(parts, "ended_at"), "not a job's page"),
    "with a field too many": (lambda parts: parts | {"more": 1}, "not a job's page"),
    "with a strange moment": (lambda parts: parts | {"accepted_at": "soon"}, "soon"),
    "with a strange attempt": (lambda parts: parts | {"attempts": [{}]}, "not a job's page"),
    "with a strange launch": (lambda parts: parts | {"launch": "x"}, "not a job's page"),
    "a list": (lambda parts: [parts], "not a job's page"),
    "nothing": (lambda parts: None, "not a job's page"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_no_page_is_refused(how: str) -> None:
    spoil, said = SPOILED[how]
    text = json.dumps(spoil(json.loads(INTENT.to_json())))

    with pytest.raises(ValueError, match=said):
        Page.from_json(text, revision=1)


def test_half_a_page_is_refused() -> None:
    text = INTENT.to_json()

    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        Page.from_json(text[: len(text) // 2], revision=1)


def test_lines_of_any_language_are_kept() -> None:
    page = attrs.evolve(TERMINAL, attempts=(attrs.evolve(TERMINAL.attempts[0], last_lines=LINES),))

    assert Page.from_json(page.to_json(), revision=1).attempts[0].last_lines == LINES
