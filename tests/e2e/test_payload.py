"""What is too long for a launch arrives in a real container all the same."""

from __future__ import annotations

import hashlib
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig

from fargate_runner import EcsBackend, Job, Runner
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import FakeAws
from tests.contract.test_ecs import NETWORK, ROLES

pytestmark = pytest.mark.docker


async def test_two_hundred_kilobytes_arrive_in_the_container(real: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
    payload = {f"PART_{n}": "".join(f"{n}:{i:05d}," for i in range(6_250)) for n in range(4)}
    script = 'printf "%s%s%s%s" "$PART_0" "$PART_1" "$PART_2" "$PART_3" | sha256sum'
    job = Job(image="fargate-runner-test/busybox:latest", command=["sh", "-c", script], env=payload)
    session: Any = aioboto3.Session(region_name=real.region)
    path_style = AioConfig(s3={"addressing_style": "path"})

    async with real.serve(moto=True) as url:
        async with session.client("s3", endpoint_url=url, config=path_style) as s3:
            await s3.create_bucket(Bucket="payloads")
        backend = EcsBackend(
            "default",
            network=NETWORK,
            roles=ROLES,
            spill_to="s3://payloads/jobs",
            session=session,
            region=real.region,
            endpoint_url=url,
            cadence=Cadence.quick(),
            log_cadence=LogCadence.quick(),
        )
        async with Runner(backend) as runner:
            result = await runner.run(job)

    whole = "".join(payload.values())
    assert len(whole) == 200_000
    assert result.last_lines[-1].text.split()[0] == hashlib.sha256(whole.encode()).hexdigest()
