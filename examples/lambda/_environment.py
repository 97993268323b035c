"""
An execution environment as Lambda keeps one: it loads a handler, then calls it for each line of JSON that comes in.

``_local.py`` starts it, with a handler's name as Lambda has it: ``submit.on_upload``.
"""

import importlib
import json
import os
import sys
import time
import traceback

TIMEOUT = 120.0
"""Seconds, as in template.yaml."""


class Context:
    """What Lambda hands to a handler beside the event, as far as it counts."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + TIMEOUT

    def get_remaining_time_in_millis(self) -> int:
        return int(1000 * (self._ends - time.monotonic()))


# What a handler prints is no answer: it goes where its warnings go.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

module, name = sys.argv[1].rsplit(".", 1)
handler = getattr(importlib.import_module(module), name)
for line in sys.stdin:
    try:
        said = {"answer": handler(json.loads(line), Context())}
    except Exception as exc:
        traceback.print_exc()
        said = {"errorType": type(exc).__name__, "errorMessage": str(exc)}
    print(json.dumps(said), file=answers, flush=True)
