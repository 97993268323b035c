"""A journal in DynamoDB: for Lambda handlers and fleets of machines."""

from __future__ import annotations

__all__ = ["DynamoDBJournal"]


class DynamoDBJournal:
    """To be written."""
