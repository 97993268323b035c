"""The events of `events/`, and a context as Lambda's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

EVENTS = Path(__file__).with_name("events")
NAMES = sorted(path.stem for path in EVENTS.glob("*.json"))


def event(name: str) -> Any:
    """A fresh copy of an event."""
    return json.loads((EVENTS / f"{name}.json").read_text())


@attrs.define
class Context:
    """What Lambda hands to a handler beside the event, as far as anybody looks at it."""

    milliseconds: Any

    def get_remaining_time_in_millis(self) -> Any:
        return self.milliseconds
