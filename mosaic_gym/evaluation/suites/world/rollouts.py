"""The roll-outs of a world on a scene, from which all figures are computed.

A world under test is given the picture, the camera and the prompt of a start, and for the roll-outs *seen* also the
true frames of a look around. After that it is driven along the cameras of the true walk away and back, or walks freely
by a policy that steers by the world's own depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mosaic_gym.evaluation.suites.world.scenes import HISTORY, WALK_STEPS, Scene, clean_depth, free_walker
from mosaic_gym.evaluation.true_frames import TRAIN_THEMES
from mosaic_gym.geometry.control import Pose
from mosaic_gym.worlds.protocol import View

PROMPTED_STEPS = 24
"""Steps of the free walk with a prompt that names a theme."""
IN_VIEW = 0.03
"""A theme is in view if it fills at least this share of a frame."""


class WorldUnderTest(Protocol):
    """The interface of a world under test. States are values: stepping returns new ones.

    Attributes:
        fingerprint: differs between worlds whose roll-outs differ.
        takes_prompts: whether a prompt changes what it generates.
        has_memory: whether its memory can be switched off.
    """

    fingerprint: str
    takes_prompts: bool
    has_memory: bool

    def start(self, frame: np.ndarray, pose: Pose, prompt: str, seed: int, index: int, depth_m: np.ndarray) -> Any:
        """The state of a body at rest in front of a picture, uint8 `[H, W, 3]`, and the world's depth `[H, W]` of it.

        Args:
            index: of the scene's map.
            depth_m: true depth of the picture, `[H, W]`; for worlds with a known answer alone. A learned world must not
                read it.
        """
        ...

    def observe(self, state: Any, frames: np.ndarray, poses: Sequence[Pose]) -> Any:
        """The state after four true frames, uint8 `[4, H, W, 3]`."""
        ...

    def without_memory(self, state: Any) -> Any:
        """The same state, whose memory is empty and stays so."""
        ...

    def generate(self, states: Sequence[Any], poses: Sequence[Sequence[Pose]]) -> tuple[list[Any], list[View]]:
        """One step along four known cameras for every state."""
        ...

    def step(self, states: Sequence[Any], actions: np.ndarray) -> tuple[list[Any], list[View]]:
        """One step by actions `[b, 3]`."""
        ...


@dataclass(frozen=True)
class Rollout:
    """The roll-outs of a world on one scene, every step's last frame. Shapes as in `Scene`, `o` steps of the way out.

    Attributes:
        index: of the scene.
        seen, seen_before, seen_depth: the way out and back after the true look around, `[p, ...]`; `before` is the
            video frame before the last of a step.
        off: the same with memory off, uint8 `[p, H, W, 3]`; None for a world without memory.
        invented, invented_before, invented_depth: the way out and back after the start alone.
        again: the way out after the start alone, by another seed, uint8 `[o, H, W, 3]`.
        walk, walk_depth, walk_cameras: the free walk; the first frame is the start.
        start_depth: the world's own depth of the start's picture, `[H, W]`.
        prompted: the first `PROMPTED_STEPS` of the free walk with another theme as prompt; None without prompts.
        prompted_theme: index of that theme.
    """

    index: int
    seen: np.ndarray
    seen_before: np.ndarray
    seen_depth: np.ndarray
    off: np.ndarray | None
    invented: np.ndarray
    invented_before: np.ndarray
    invented_depth: np.ndarray
    again: np.ndarray
    walk: np.ndarray
    walk_depth: np.ndarray
    walk_cameras: np.ndarray
    start_depth: np.ndarray | None = None
    prompted: np.ndarray | None = None
    prompted_theme: int | None = None


def roll_out(world: WorldUnderTest, scenes: Sequence[Scene]) -> list[Rollout]:
    """All roll-outs of a world on some scenes, as one batch."""
    rests = [scene.history_poses(0)[-1] for scene in scenes]

    def begin(seed: int) -> tuple[list[Any], list[np.ndarray]]:
        started = [
            world.start(scene.start_frame, rest, scene.prompt, seed, scene.index, scene.history_depth[0])
            for scene, rest in zip(scenes, rests, strict=True)
        ]
        return [state for state, _ in started], [clean_depth(depth_m) for _, depth_m in started]

    states, start_depth = begin(0)
    for step in range(1, HISTORY):
        states = [
            world.observe(state, scene.history_frames[step], scene.history_poses(step))
            for state, scene in zip(states, scenes, strict=True)
        ]
    lengths = [2 * scene.out for scene in scenes]
    seen = _along_path(world, states, scenes, lengths)
    off = None
    if world.has_memory:
        off = _along_path(world, [world.without_memory(state) for state in states], scenes, lengths)
    invented = _along_path(world, begin(0)[0], scenes, lengths)
    again = _along_path(world, begin(1)[0], scenes, [scene.out for scene in scenes])
    walks = _walk(world, scenes, [scene.walk_prompt for scene in scenes], WALK_STEPS)
    prompted, themes = None, [None] * len(scenes)
    if world.takes_prompts:
        themes = [_other_theme(scene.index, np.flatnonzero(scene.walk_themes > IN_VIEW)) for scene in scenes]
        prompts = [f"a {TRAIN_THEMES[theme]} room, bright" for theme in themes]  # as in the recordings' captions
        prompted = _walk(world, scenes, prompts, PROMPTED_STEPS)
    return [
        Rollout(
            scene.index, *seen[i], None if off is None else off[i][0], *invented[i], again[i][0], *walks[i],
            start_depth[i], None if prompted is None else prompted[i][0], themes[i],
        )
        for i, scene in enumerate(scenes)
    ]  # fmt: skip


def _other_theme(index: int, in_view: Sequence[int]) -> int:
    """A theme that is not in view, drawn evenly by the index of the map."""
    others = [theme for theme in range(len(TRAIN_THEMES)) if theme not in in_view]
    return int(np.random.default_rng([index, 3]).choice(others))


def _along_path(
    world: WorldUnderTest, states: Sequence[Any], scenes: Sequence[Scene], lengths: Sequence[int]
) -> list[tuple[np.ndarray, ...]]:
    """Frames uint8 `[n, H, W, 3]`, the frames before them, and depth, along the first n steps of each scene's path."""
    states, views = list(states), [[] for _ in scenes]
    for step in range(max(lengths)):
        active = [i for i, length in enumerate(lengths) if step < length]
        after, found = world.generate([states[i] for i in active], [scenes[i].path_poses(step) for i in active])
        for i, state, view in zip(active, after, found, strict=True):
            states[i] = state
            views[i].append((view.frames[-1], view.frames[-2], view.depth_m))
    return [_stacked(rows) for rows in views]  # frames, the frames before, depth


def _walk(
    world: WorldUnderTest, scenes: Sequence[Scene], prompts: Sequence[str], steps: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Frames, depth and cameras `[n, 4, 4]` of free walks of some steps, the start included."""
    walkers = [free_walker(scene.index) for scene in scenes]
    starts = [Pose(scene.walk_cameras[0]) for scene in scenes]
    started = [
        world.start(scene.walk_frames[0], pose, prompt, 0, scene.index, scene.walk_depth[0])
        for scene, pose, prompt in zip(scenes, starts, prompts, strict=True)
    ]
    states, depth = ([row[column] for row in started] for column in (0, 1))
    rows = [[(scene.walk_frames[0], depth[i])] for i, scene in enumerate(scenes)]
    cameras = [[pose.world_from_camera] for pose in starts]
    for _ in range(steps):
        actions = [walker.act(clean_depth(depth_m)) for walker, depth_m in zip(walkers, depth, strict=True)]
        states, views = world.step(states, np.stack(actions))
        depth = [view.depth_m for view in views]
        for i, view in enumerate(views):
            rows[i].append((view.frames[-1], view.depth_m))
            cameras[i].append(view.world_from_camera[-1])
    return [(*_stacked(rows[i]), np.stack(cameras[i])) for i in range(len(scenes))]


def _stacked(rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Columns of arrays, stacked; the last is depth."""
    *frames, depth = (np.stack(column) for column in zip(*rows, strict=True))
    return *frames, clean_depth(depth)


def simulator_rollouts(scenes: Sequence[Scene]) -> list[Rollout]:
    """What the simulator does on its own scenes: the truth. Another seed is another map, the next one."""
    found = []
    for i, scene in enumerate(scenes):
        other = scenes[(i + 1) % len(scenes)]
        path, out = (scene.path_frames, scene.path_before, scene.path_depth), min(scene.out, other.out)
        walk = scene.walk_frames, scene.walk_depth, scene.walk_cameras
        again = other.path_frames[:out]
        found.append(Rollout(scene.index, *path, None, *path, again, *walk, scene.history_depth[0]))
    return found
