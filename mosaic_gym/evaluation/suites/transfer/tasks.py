"""The goal task at recorded places, where the dream remembers the recording.

`RecordedGoalTask` ends where the recorded walk went on to, so that dream and engine can play the same episodes.
`generated_goals` is the goal task itself, whose scripted walk is generated: what is trained in the learned world
meets the task that the simulator sets later.
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
    """What an episode needs of a recorded one; S steps.

    Attributes:
        frames: uint8 `[S, H, W, 3]`, the last of every step.
        cameras: `[S, 4, 4]`, world_from_camera, metres, the last of every step.
        actions: `[S, 3]`, which led to each step.
        memory: of a dream that remembers the recording; None for the engine, which needs none.
    """

    frames: np.ndarray
    cameras: np.ndarray
    actions: np.ndarray
    memory: Any = None


class RecordedGoalTask(Reach):
    """Reach the place that a recorded walk came to, from a place on its way.

    The body of the recording only went ahead and turned in between, for some steps and until it was `far_m` away.

    Args:
        recordings: at least one with such a walk.
        reach_m, far_m, steps: as `GoalTask` takes them.

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
        self.ways = [  # (recording, step, the steps that may be its goal)
            (index, here, goals)
            for index, recording in enumerate(recordings)
            for here in range(len(recording.frames))
            if (goals := self._goals(recording, here))
        ]
        if not self.ways:
            raise ValueError(f"no recording has a walk of {steps[0]} steps to {far_m} m away; record longer episodes")

    def _goals(self, recording: Recording, here: int) -> list[int]:
        """Where walks of as many steps as may be drawn, and as many more as they need to be far away, end."""
        forward, strafe, turn = recording.actions[here + 1 : here + 1 + 3 * self.steps[1]].T
        walked = (forward >= 0.99) | ((forward == 0) & (strafe == 0) & (np.abs(turn) == 1))
        length = 1 + (len(walked) if walked.all() else int(walked.argmin()))
        places_m = recording.cameras[here : here + length, [0, 2], 3]
        far = np.hypot(*(places_m - places_m[0]).T) >= self.far_m
        drawn = range(self.steps[0], self.steps[1] + 1)
        ends = {int(far[steps:].argmax()) + steps for steps in drawn if far[steps:].any()}
        return sorted(here + end for end in ends)

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`. The same seed is the same scene, in the dream and in the engine."""
        return [self._scene(world, start) for start in starts]

    def _scene(self, world: World, start: Start) -> StartAndGoal:
        rng = np.random.default_rng([start.seed, 2])
        index, here, goals = self.ways[int(rng.integers(len(self.ways)))]
        goal, recording = int(rng.choice(goals)), self.recordings[index]
        start = replace(start, world_from_camera=recording.cameras[here])
        if recording.memory is not None:
            start = replace(start, image=recording.frames[here], memory=recording.memory)
        state, view = world.start(start)
        x, z = recording.cameras[goal, [0, 2], 3]
        return StartAndGoal(state, view, recording.frames[goal].copy(), (float(x), float(z)))


class StoredGoals(GoalTask):
    """The goal task, for starts whose seeds count up from 0: where their walks ended is kept, and not walked again.

    Args:
        path: of the file: `goal` uint8 `[n, H, W, 3]` and `goal_m` `[n, 2]`, of the first n seeds.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`.

        Raises:
            ValueError: seeds that do not count up by one, or that leave a gap behind what is kept.
        """
        from safetensors.numpy import load_file, save_file

        # Read into memory: the file is written anew below.
        kept = load_file(self.path) if self.path.is_file() else {}
        goals, places_m = list(kept.get("goal", [])), list(kept.get("goal_m", []))
        seeds = [start.seed for start in starts]
        first = seeds[0] if seeds else 0
        if seeds != list(range(first, first + len(seeds))) or not 0 <= first <= len(goals):
            raise ValueError(
                f"goals are kept of seeds that count up from 0, so far of {len(goals)}: give starts whose seeds count "
                f"up by one, the first of them from 0 to {len(goals)}; got {seeds}"
            )
        known = [start for start in starts if start.seed < len(goals)]
        walked: list[StartAndGoal] = []
        if len(known) < len(starts):
            walked = super().sample_start_and_goal(world, starts[len(known) :])
            goals += [scene.goal for scene in walked]
            places_m += [np.array(scene.goal_m) for scene in walked]
            written = self.path.with_suffix(".part")
            save_file({"goal": np.stack(goals), "goal_m": np.stack(places_m)}, written)
            written.replace(self.path)
        scenes = []
        for start in known:
            state, view = world.start(start)
            x, z = places_m[start.seed]
            scenes.append(StartAndGoal(state, view, goals[start.seed], (float(x), float(z))))
        return scenes + walked


def generated_goals(
    world: World, recordings: Sequence[Recording], scenes: int, keep: Path, seed: int = 0
) -> FixedStarts:
    """The goal task from recorded places: scenes that are dreamt once, in `world`, and that episodes draw among.

    Args:
        world: the dream, or another that plays the same states.
        recordings: with memories; scenes begin in each as often, at any of their steps.
        scenes: to dream.
        keep: the file of `StoredGoals`, for the same of everything else.
        seed: of where they begin.
    """
    task = FixedStarts(StoredGoals(keep), scenes, lambda n: _somewhere(recordings[n % len(recordings)], n, seed))
    task.prepare(world)
    return task


def _somewhere(recording: Recording, number: int, seed: int) -> Start:
    here = int(np.random.default_rng([seed, number, 4]).integers(len(recording.frames)))
    return Start(
        seed=number, image=recording.frames[here], world_from_camera=recording.cameras[here], memory=recording.memory
    )


def simulator_task(store: EpisodeStore) -> RecordedGoalTask:
    """The task at the places of recorded episodes, for the engine."""
    return RecordedGoalTask([_recording(store, index) for index in range(len(store))])


def remembered(store: EpisodeStore, model: WorldModel, places: int | None = None) -> list[Recording]:
    """The first `places` recorded episodes (None for all), with memories of them; depth is estimated, as in play."""
    from mosaic_gym.memory.mosaic import MosaicMemory
    from mosaic_gym.training.samples import lift_episodes

    recordings = []
    for index, episode in enumerate(lift_episodes(store, model.codec, model.depth, model.atlas, places)):
        memory = MosaicMemory(tuple(episode.keyframes), model.settings.capacity)
        recordings.append(replace(_recording(store, index), memory=memory))
    return recordings


def _recording(store: EpisodeStore, index: int) -> Recording:
    episode = store.load(index)
    cameras = episode["world_from_camera"][:, -1].double().numpy()
    return Recording(episode["frames"][:, -1].numpy(), cameras, episode["action"].numpy())
