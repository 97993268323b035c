"""What all handlers of this example agree on: where jobs run, and what the job for an upload is."""

import os
from datetime import timedelta
from typing import Any

from fargate_runner import DynamoDBJournal, EcsBackend, Job, Retry, Runner


def make_runner() -> Runner:
    """Make the runner of a handler. Cluster, network, roles and log group are in the environment: see template.yaml."""
    return Runner(EcsBackend(), journal=DynamoDBJournal(os.environ["JOURNAL_TABLE"]))


def conversion(upload: dict[str, Any]) -> Job:
    """Return the job for an upload, which `submit.on_upload` described. Its key has it run once, whoever asks again."""
    return Job(
        name="convert",
        image=os.environ["IMAGE"],
        command=["convert", f"s3://{upload['bucket']}/{upload['object']}"],
        key=upload["key"],
        retry=Retry(failures=1, interruptions=5),
        timeout=timedelta(hours=2),
    )
