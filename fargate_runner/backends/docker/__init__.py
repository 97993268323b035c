"""A real Docker engine as a place where jobs run, under Fargate's rules. Opening it needs the extra ``docker``."""

from __future__ import annotations

from fargate_runner.backends.docker._backend import AwsCredentials, DockerBackend

__all__ = ["AwsCredentials", "DockerBackend"]
