"""What processes that speak with the fake AWS have in common."""

from __future__ import annotations

import pytest

from tests.killed.batch import CREDENTIALS


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is known; the fake AWS takes anybody."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
