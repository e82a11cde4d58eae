"""Goal tasks at recorded places, where the learned world has the recording in memory.

In `RecordedGoalTask` the goal is a place that the recorded walk came to later, so that the learned world and the
simulator play the same episodes. `fixed_goal_task` is the ordinary goal task with generated scripted walks, so that a
policy is trained in the learned world on the task of the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_gym.envs.tasks import FixedStarts, GoalTask, Reach, StartAndGoal
from mosaic_gym.worlds.protocol import Start, World

if TYPE_CHECKING:
    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.model.checkpoints import WorldModel


@dataclass(frozen=True)
class Recording:
    """The parts of a recorded episode that a task needs; S steps.

    Attributes:
        frames: uint8 `[S, H, W, 3]`, the last frame of every step.
        cameras: `[S, 4, 4]`, world_from_camera, metres, the last camera of every step.
        actions: `[S, 3]`, the action before each step.
        memory: of a learned world, with the recording in it; None for the simulator.
    """

    frames: np.ndarray
    cameras: np.ndarray
    actions: np.ndarray
    memory: Any = None


class RecordedGoalTask(Reach):
    """Reach a place that a recorded walk came to, from an earlier place of the walk.

    Between the two, the recorded camera only moved forward and turned. The walk has a random number of steps, and goes
    on until it is `far_m` away.

    Args:
        recordings: at least one with such a walk.
        reach_m: as in `GoalTask`.
        far_m: as in `GoalTask`.
        steps: as in `GoalTask`.

    Raises:
        ValueError: no recording has such a walk.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        reach_m: float = 1.0,
        far_m: float = 5.0,
        steps: tuple[int, int] = (8, 14),
    ) -> None:
        super().__init__(reach_m, far_m, steps)
        self.recordings = recordings
        self.walks = [  # (recording, first step, steps that may be the goal)
            (index, first, goals)
            for index, recording in enumerate(recordings)
            for first in range(len(recording.frames))
            if (goals := self._goals(recording, first))
        ]
        if not self.walks:
            raise ValueError(f"no recording has a walk of {steps[0]} steps to {far_m} m away; record longer episodes")

    def _goals(self, recording: Recording, first: int) -> list[int]:
        """Last steps of the walks from a step, one for each number of steps that may be drawn, without duplicates."""
        forward, strafe, turn = recording.actions[first + 1 : first + 1 + 3 * self.steps[1]].T
        walking = (forward >= 0.99) | ((forward == 0) & (strafe == 0) & (np.abs(turn) == 1))
        length = 1 + (len(walking) if walking.all() else int(walking.argmin()))
        places_m = recording.cameras[first : first + length, [0, 2], 3]
        far = np.hypot(*(places_m - places_m[0]).T) >= self.far_m
        counts = range(self.steps[0], self.steps[1] + 1)
        ends = {int(far[count:].argmax()) + count for count in counts if far[count:].any()}
        return sorted(first + end for end in ends)

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`. A seed gives the same start and goal in the learned world and in the simulator."""
        return [self._start_and_goal(world, start) for start in starts]

    def _start_and_goal(self, world: World, start: Start) -> StartAndGoal:
        rng = np.random.default_rng([start.seed, 2])
        index, first, goals = self.walks[int(rng.integers(len(self.walks)))]
        goal, recording = int(rng.choice(goals)), self.recordings[index]
        start = replace(start, world_from_camera=recording.cameras[first])
        if recording.memory is not None:
            start = replace(start, image=recording.frames[first], memory=recording.memory)
        state, view = world.start(start)
        x, z = recording.cameras[goal, [0, 2], 3]
        return StartAndGoal(state, view, recording.frames[goal].copy(), (float(x), float(z)))


class CachedGoalTask(GoalTask):
    """The goal task for starts with the seeds 0, 1, 2, ..., with a file of the goals, so that no walk is made twice.

    Args:
        path: the file, with `goal` uint8 `[n, H, W, 3]` and `goal_m` `[n, 2]` of the first n seeds.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`.

        Raises:
            ValueError: the seeds of the starts are not consecutive, or leave a gap after the seeds in the file.
        """
        from safetensors.numpy import load_file, save_file

        cached = load_file(self.path) if self.path.is_file() else {}  # in memory: the file is replaced below
        goals, places_m = list(cached.get("goal", [])), list(cached.get("goal_m", []))
        seeds = [start.seed for start in starts]
        first = seeds[0] if seeds else 0
        if seeds != list(range(first, first + len(seeds))) or not 0 <= first <= len(goals):
            raise ValueError(
                f"the file has goals of the first {len(goals)} seeds: give starts with consecutive seeds, the first of "
                f"them from 0 to {len(goals)}; got {seeds}"
            )
        known = [start for start in starts if start.seed < len(goals)]
        sampled: list[StartAndGoal] = []
        if len(known) < len(starts):
            sampled = super().sample_start_and_goal(world, starts[len(known) :])
            goals += [scene.goal for scene in sampled]
            places_m += [np.array(scene.goal_m) for scene in sampled]
            part = self.path.with_suffix(".part")
            save_file({"goal": np.stack(goals), "goal_m": np.stack(places_m)}, part)
            part.replace(self.path)
        loaded = []
        for start in known:
            state, view = world.start(start)
            x, z = places_m[start.seed]
            loaded.append(StartAndGoal(state, view, goals[start.seed], (float(x), float(z))))
        return loaded + sampled


def fixed_goal_task(
    world: World, recordings: Sequence[Recording], count: int, file: Path, seed: int = 0
) -> FixedStarts:
    """The goal task from recorded places, with starts and goals that are sampled once and that episodes draw from.

    Args:
        world: the learned world, or another that plays the same states.
        recordings: with memories. Each has as many starts as the others, at random steps.
        count: of starts and goals.
        file: of `CachedGoalTask`; valid for the same world, recordings and seed.
        seed: of the choice of steps.
    """
    task = FixedStarts(
        CachedGoalTask(file), count, lambda n: _start_of_recording(recordings[n % len(recordings)], n, seed)
    )
    task.prepare(world)
    return task


def _start_of_recording(recording: Recording, number: int, seed: int) -> Start:
    step = int(np.random.default_rng([seed, number, 4]).integers(len(recording.frames)))
    return Start(
        seed=number, image=recording.frames[step], world_from_camera=recording.cameras[step], memory=recording.memory
    )


def recorded_goal_task(store: EpisodeStore) -> RecordedGoalTask:
    """The task at the places of recorded episodes, for the simulator."""
    return RecordedGoalTask([_recording(store, index) for index in range(len(store))])


def load_recordings(store: EpisodeStore, model: WorldModel, count: int | None = None) -> list[Recording]:
    """The first `count` recorded episodes (None for all) with memories of them, whose depth is estimated as in play."""
    from mosaic_gym.memory.mosaic import MosaicMemory
    from mosaic_gym.training.samples import lift_episodes

    recordings = []
    for index, episode in enumerate(lift_episodes(store, model.codec, model.depth, model.atlas, count)):
        memory = MosaicMemory(tuple(episode.keyframes), model.settings.capacity)
        recordings.append(replace(_recording(store, index), memory=memory))
    return recordings


def _recording(store: EpisodeStore, index: int) -> Recording:
    episode = store.load(index)
    cameras = episode["world_from_camera"][:, -1].double().numpy()
    return Recording(episode["frames"][:, -1].numpy(), cameras, episode["action"].numpy())
