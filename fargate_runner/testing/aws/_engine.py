"""
What runs the containers of the fake's tasks: an `Engine`. `ScriptedEngine` plays scripts on the clock.

The seam is narrow, so that a fake with real containers behind it differs in nothing but the containers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fargate_runner.testing.aws._script import OUT_OF_MEMORY
from fargate_runner.testing.aws._task import Container, Task

if TYPE_CHECKING:
    from fargate_runner.testing.aws._world import Due, World

__all__ = ["Engine", "ScriptedEngine"]


class Engine(ABC):
    """
    What runs the containers of tasks; the world does everything else.

    The world calls `start` once, when the task is ACTIVATING (or about to be, see `shows_activating`); never for a
    task that was stopped before, or that cannot start because of its secrets or log group. It calls `stop` at most
    once, as soon as the desired status is STOPPED, and `kill` if the host below is gone, perhaps after `stop`. All
    three return at once: an engine that has to wait does it in tasks of its own. It reports by the world's methods, in
    this order::

        world.pulling(task); world.pulled(task)                   # once per task, around all image pulls
        world.container_started(task, name, …)                    # once per container
        world.output(task, name, [(milliseconds, line), …])       # any number of times, also just after the exit
        world.container_exited(task, name, exit_code=…, reason=…) # once per container that was started
        world.finished(task)                                      # exactly once, last: nothing of it runs any more

    `World.container_exited` of an essential container calls `stop` before it returns: the containers that still run are
    to be signalled then. A task that cannot start is told by `World.failed_to_start`, which calls `stop` too: what runs
    already is taken down and reported as above, and `World.finished` closes it. After `stop` no further container may
    be started; one that was on its way is reported as started and exited, or not at all.

    `finished` is due also if all containers ended by themselves, and after `stop` and `kill`; it does nothing the
    second time.
    """

    shows_activating: ClassVar[bool] = True
    """
    Whether a task is shown as ACTIVATING while its containers start. Clients are in wide use that take that state for a
    failed start; on Fargate it passes too quickly for them to see it often.
    """

    world: World

    def bind(self, world: World) -> None:
        """Be told whom to report to. Called once, before everything else."""
        self.world = world

    @abstractmethod
    def start(self, task: Task) -> None:
        """Pull the images and start the containers of a task, in the order of their dependencies."""

    @abstractmethod
    def stop(self, task: Task) -> None:
        """Send the stop signal to every container that runs, and SIGKILL after its ``stop_timeout``."""

    @abstractmethod
    def kill(self, task: Task) -> None:
        """End everything of a task at once: its host is gone."""


class _Play:
    """A task on the scripted engine."""

    __slots__ = ("pending", "running", "stopping")

    def __init__(self) -> None:
        self.pending: list[Container] = []
        """Not started yet."""
        self.running: dict[str, list[Due]] = {}
        """What will happen to a container that runs: to be called off when it ends."""
        self.stopping = False


class ScriptedEngine(Engine):
    """Plays `ContainerScript`s on the clock."""

    def __init__(self) -> None:
        self._plays: dict[str, _Play] = {}

    def start(self, task: Task) -> None:
        play = self._plays[task.arn] = _Play()
        play.pending = [container for container in task.containers if container.defined]
        for container in play.pending:
            if container.script.could_not_start.startswith("ResourceInitializationError"):
                self._refuse(task, play, container)
                return
        self.world.pulling(task)
        self.world.after(self.world.span(task, "pull"), partial(self._pulled, task, play))

    def _pulled(self, task: Task, play: _Play) -> None:
        if play.stopping:
            return
        for container in play.pending:
            if container.script.could_not_start.startswith(("CannotPull", "The task cannot pull")):
                self._refuse(task, play, container)
                return
        self.world.pulled(task)
        self.world.after(self.world.span(task, "start"), partial(self._go_on, task, play))

    def _refuse(self, task: Task, play: _Play, container: Container) -> None:
        reason = container.script.could_not_start
        self.world.failed_to_start(task, reason, container=container.name, container_reason=reason)
        self._end_if_nothing_runs(task, play)

    def _go_on(self, task: Task, play: _Play) -> None:
        """Start every container whose dependencies are met, until there is none."""
        progress = True
        while progress and not play.stopping:
            progress = False
            for container in list(play.pending):
                if play.stopping:
                    return
                state = self._may_start(task, container)
                if state is None:
                    continue
                if state:
                    self.world.failed_to_start(task, state, container=container.name, container_reason=state)
                    self._end_if_nothing_runs(task, play)
                    return
                if container.script.could_not_start:
                    self._refuse(task, play, container)
                    return
                play.pending.remove(container)
                self._run(task, play, container)
                progress = True

    def _may_start(self, task: Task, container: Container) -> str | None:
        """Return the empty string if the container may start, None if it has to wait, or why it never will."""
        for wanted in container.definition.get("dependsOn") or ():
            other, condition = task.container(wanted["containerName"]), wanted["condition"]
            if condition == "START" and other.status != "PENDING":
                continue
            if condition == "COMPLETE" and other.status == "STOPPED":
                continue
            if condition == "SUCCESS" and other.status == "STOPPED":
                if other.exit_code == 0:
                    continue
                return (
                    f"TaskDependencyError: container {container.name} depends on the success of {other.name}, "
                    f"which exited with {other.exit_code}"
                )
            if condition == "HEALTHY" and other.health == "HEALTHY":
                continue
            if condition == "HEALTHY" and (other.health == "UNHEALTHY" or other.status == "STOPPED"):
                return f"TaskDependencyError: container {container.name} depends on {other.name}, which is not healthy"
            return None
        return ""

    def _run(self, task: Task, play: _Play, container: Container) -> None:
        world, script = self.world, container.script
        begun = world.now()
        due: list[Due] = []
        play.running[container.name] = due
        world.container_started(task, container.name)
        if container.health is not None:
            healthy = script.healthy_after is not None
            due.append(world.after(script.healthy_after or 1.0, partial(self._checked, task, play, container, healthy)))
        if script.lines:
            self._write(task, container, begun, due)
        if math.isfinite(script.run_for):
            due.append(world.after(script.run_for, partial(self._exit_by_itself, task, play, container, begun)))

    def _checked(self, task: Task, play: _Play, container: Container, healthy: bool) -> None:
        self.world.container_healthy(task, container.name, healthy=healthy)
        self._go_on(task, play)

    def _write(self, task: Task, container: Container, begun: float, due: list[Due]) -> None:
        """Write the lines that are due, and come back for the next batch."""
        world, lines = self.world, container.script.lines
        now, first = world.now(), len(container.written)
        written = first
        while written < len(lines) and self._line_at(container, begun, written) <= now:
            written += 1
        if written > first:
            stamped = [
                (world.milliseconds(self._line_at(container, begun, number)), lines[number])
                for number in range(first, written)
            ]
            world.output(task, container.name, stamped)
        if written < len(lines):
            at = self._line_at(container, begun, written) + world.pace_of(task).log_flush
            due.append(world.at(at, partial(self._write, task, container, begun, due)))

    @staticmethod
    def _line_at(container: Container, begun: float, number: int) -> float:
        script = container.script
        if math.isfinite(script.run_for):
            return begun + script.run_for * (number + 1) / (len(script.lines) + 1)
        return begun + number + 1.0

    def _exit_by_itself(self, task: Task, play: _Play, container: Container, begun: float) -> None:
        script = container.script
        code, reason = script.exit_code, script.reason
        if script.out_of_memory:
            code, reason = 137, script.reason or OUT_OF_MEMORY
        if script.exit_unnoticed:
            container.ended_at, container.true_exit_code = self.world.now(), code
            return
        self._exit(task, play, container, code, reason)

    def _exit(self, task: Task, play: _Play, container: Container, code: int | None, reason: str = "") -> None:
        due = play.running.pop(container.name, None)
        if due is None:
            return
        for entry in due:
            entry.cancel()
        assert container.started_at is not None
        self._flush(task, container, container.started_at)
        if container.ended_at is not None:
            code = container.true_exit_code  # it had ended unnoticed
        self.world.container_exited(task, container.name, exit_code=code, reason=reason)
        if play.stopping:
            self._end_if_nothing_runs(task, play)
        else:
            self._go_on(task, play)
            if not play.pending and not play.running:
                self._end_if_nothing_runs(task, play)

    def _flush(self, task: Task, container: Container, begun: float) -> None:
        """Write what was said until now; the driver gets a few seconds for it when a container ends."""
        if container.ended_at is None and container.script.lines:
            nothing_more: list[Due] = []
            self._write(task, container, begun, nothing_more)
            for entry in nothing_more:
                entry.cancel()

    def _end_if_nothing_runs(self, task: Task, play: _Play) -> None:
        if not play.running and self._plays.pop(task.arn, None) is not None:
            self.world.finished(task)

    def stop(self, task: Task) -> None:
        play = self._plays.get(task.arn)
        if play is None or play.stopping:
            return
        play.stopping = True
        play.pending = []
        for name in list(play.running):
            container = task.container(name)
            script = container.script
            deaf = script.ignores_sigterm or script.exit_unnoticed
            wait = container.stop_timeout if deaf else min(self.world.span(task, "dying"), container.stop_timeout)
            code = 137 if script.ignores_sigterm else script.exit_code_on_sigterm
            play.running[name].append(self.world.after(wait, partial(self._exit, task, play, container, code)))
        self.world.after(0.0, partial(self._end_if_nothing_runs, task, play))

    def kill(self, task: Task) -> None:
        play = self._plays.get(task.arn)
        if play is None:
            return
        play.stopping = True
        play.pending = []
        for name in list(play.running):
            self._exit(task, play, task.container(name), None)
        self._end_if_nothing_runs(task, play)
