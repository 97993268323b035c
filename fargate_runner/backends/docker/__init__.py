from fargate_runner.backends.docker._backend import DockerBackend
__all__ = ["DockerBackend"]
