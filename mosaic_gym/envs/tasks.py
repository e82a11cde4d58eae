"""Tasks: scene, reward and termination, judged from views and never from the network.

A task keeps no state of its own: what it has to remember is a value that travels with the episode, so that one
task object serves many episodes at once. That value is made of what JSON can say (arrays are told as lists, tuples not
at all), so that a saved episode goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mosaic_gym.data.explore import steer_towards_depth
from mosaic_gym.worlds.protocol import Start, State, View, World


@dataclass(frozen=True)
class StartAndGoal:
    """How an episode begins.

    Attributes:
        state: of the world, and `view` what it shows.
        goal: uint8 `[H, W, 3]`, what the observation shows as the goal.
        goal_m: `[2]` (x, z) of the place to reach, metres; None for tasks without one.
        seen: views before the present one, oldest first: a walk that an agent of its own memory should see.
    """

    state: State
    view: View
    goal: np.ndarray
    goal_m: tuple[float, float] | None = None
    seen: tuple[View, ...] = ()


@dataclass(frozen=True)
class TaskStep:
    """What a task says of one step.

    Attributes:
        progress: what the task remembers, for the next step.
        reward: of this step.
        terminated: whether the task is over.
        success: whether this step did what the task asks for; None of a task that asks for nothing that can be done.
    """

    task_state: Any
    reward: float
    terminated: bool
    success: bool | None = False


@runtime_checkable
class Task(Protocol):
    """Scene, reward and termination of an episode, from what is seen only."""

    samples_goal: bool
    """Whether the scene brings its own goal, which the observation must then show.

    A task whose `judge` cannot do without its progress may also say so, by `remembers = True`: imagination then asks
    for it before anything is imagined.
    """

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """One scene for each start; batched, so that a learned world prepares many at once.

        In a world that has one body this begins an episode, and may walk through it: the episode before is over then,
        also where this raises.
        """
        ...

    def begin(self, scene: StartAndGoal) -> Any:
        """What the task remembers after the first view, in JSON's terms."""
        ...

    def evaluate(self, task_state: Any, view: View) -> TaskStep:
        """The verdict on a step that showed `view`."""
        ...


class _WorldStart:
    """The world's own start; the goal shown is the first view."""

    samples_goal = False

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        begun = [world.start(start) for start in starts]
        return [StartAndGoal(state, view, view.frames[-1].copy()) for state, view in begun]


class ExploreTask(_WorldStart):
    """Surface seen for the first time, in square metres, from lifted geometry.

    The view's depth is lifted on a grid of points; each cube of space of `cell_m` that holds one counts once.

    Args:
        cell_m: side of a cube, metres.
        far_m: what is farther away is not yet seen: its depth is told too coarsely to count.
        stride_px: of the grid.
    """

    remembers = True

    def __init__(self, cell_m: float = 1.0, far_m: float = 8.0, stride_px: int = 4) -> None:
        self.cell_m, self.far_m, self.stride_px = cell_m, far_m, stride_px

    def begin(self, scene: StartAndGoal) -> np.ndarray:
        """The cubes in sight at the beginning, int64 `[n]`."""
        return self._cubes(scene.view)

    def evaluate(self, task_state: np.ndarray, view: View) -> TaskStep:
        """Counts the cubes that are new; never ends."""
        known = np.asarray(task_state, dtype=np.int64)
        cubes = np.union1d(known, self._cubes(view))
        return TaskStep(cubes, (len(cubes) - len(known)) * self.cell_m**2, False, success=None)

    def _cubes(self, view: View) -> np.ndarray:
        """Sorted numbers of the cubes that hold a point of the last frame."""
        first = self.stride_px // 2
        depth_m = view.depth_m[first :: self.stride_px, first :: self.stride_px]
        rows, columns = np.indices(depth_m.shape) * self.stride_px + first + 0.5
        k = view.image_from_camera
        rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones_like(rows)], axis=-1)
        points = (rays * depth_m[..., None])[depth_m < self.far_m]
        camera = view.world_from_camera[-1]
        cells = np.floor((points @ camera[:3, :3].T + camera[:3, 3]) / self.cell_m).astype(np.int64)
        # Twenty bits an axis: a thousand kilometres of metres.
        return np.unique(((cells + (1 << 19)) << np.array([40, 20, 0])).sum(-1))


class SimulatorTask(_WorldStart):
    """The world's own reward and end."""

    def begin(self, scene: StartAndGoal) -> None:
        """Nothing to remember."""

    def evaluate(self, task_state: None, view: View) -> TaskStep:
        """Passes on what the world said of the step."""
        return TaskStep(None, view.reward, view.terminated, success=None)


WALKS = 8
"""How often a scripted walk is tried that ends where it began, or ends the episode."""
TURNS = (6, 19)
"""Steps of turning with which another attempt begins: a sixth of a turn to half of one."""


class Reach:
    """Reaching a place: paid by the metre, and `BONUS` on arrival, which ends the episode.

    Setting a scene takes scripted walks. In the engine they are walks of the one body there is: a reset that finds none
    which leads away (RuntimeError) has ended the episode before it, and the next reset begins another.
    """

    samples_goal = True
    remembers = True
    BONUS = 5.0

    def __init__(self, reach_m: float = 1.0, far_m: float = 5.0, steps: tuple[int, int] = (8, 14)) -> None:
        self.reach_m, self.far_m, self.steps = reach_m, far_m, steps

    def begin(self, scene: StartAndGoal) -> dict[str, Any]:
        """Where the goal is, and how far."""
        return {"goal_m": list(scene.goal_m), "left_m": _distance_m(scene.view, scene.goal_m)}

    def evaluate(self, task_state: dict[str, Any], view: View) -> TaskStep:
        """Metres gained on the goal; `terminated` says it was reached."""
        left_m = _distance_m(view, task_state["goal_m"])
        reached = left_m <= self.reach_m
        reward = task_state["left_m"] - left_m + (self.BONUS if reached else 0.0)
        return TaskStep({**task_state, "left_m": left_m}, reward, reached, reached)

    def _walk(self, world: World, starts: Sequence[Start]) -> tuple[list[State], list[list[View]]]:
        """Scripted walks, each until it is `far_m` away if it finds a way there: last states, and all views.

        One that came back, or ended, would be an episode that is over before it begins: it is walked anew.

        Raises:
            RuntimeError: from some start no walk gets further away than what counts as having arrived.
        """
        present: list[State] = [None] * len(starts)
        walks: list[list[View]] = [[] for _ in starts]
        missing = list(range(len(starts)))
        for attempt in range(WALKS):
            states, views = self._walk_once(world, [starts[i] for i in missing], attempt)
            for i, state, walk in zip(missing, states, views, strict=True):
                present[i], walks[i] = state, walk
            missing = [i for i in missing if not self._leads_away(walks[i])]
            if not missing:
                return present, walks
        seeds = [starts[i].seed for i in missing]
        raise RuntimeError(
            f"{WALKS} scripted walks from the starts of seeds {seeds} came no further than {self.reach_m} m, which "
            "counts as arrived; begin elsewhere, or make the task with a smaller reach_m or more steps"
        )

    def _leads_away(self, walk: Sequence[View]) -> bool:
        return not walk[-1].terminated and _distance_m(walk[-1], place_of(walk[0])) > self.reach_m

    def _walk_once(self, world: World, starts: Sequence[Start], attempt: int) -> tuple[list[State], list[list[View]]]:
        again = [attempt] if attempt else []
        rngs = [np.random.default_rng([start.seed, 1, *again]) for start in starts]
        # In a corner the walker turns to and fro; another attempt therefore turns away first.
        turns = [int(rng.integers(*TURNS)) if attempt else 0 for rng in rngs]
        sides = [float(rng.choice((-1, 1))) if attempt else 0.0 for rng in rngs]
        steps = [n + int(rng.integers(self.steps[0], self.steps[1] + 1)) for n, rng in zip(turns, rngs, strict=True)]
        begun = [world.start(start) for start in starts]
        present, walks = [state for state, _ in begun], [[view] for _, view in begun]
        for step in range(3 * self.steps[1] + max(turns)):
            going = [i for i in range(len(starts)) if self._goes_on(step, steps[i], walks[i])]
            if not going:
                break
            action_vectors = np.stack([
                (0.0, 0.0, sides[i]) if step < turns[i] else steer_towards_depth(walks[i][-1].depth_m, rngs[i])
                for i in going
            ])  # fmt: skip
            states, views = world.step([present[i] for i in going], action_vectors)
            for i, state, view in zip(going, states, views, strict=True):
                present[i] = state
                walks[i].append(view)
        return present, walks

    def _goes_on(self, step: int, steps: int, walk: Sequence[View]) -> bool:
        last = walk[-1]
        return not last.terminated and (step < steps or _distance_m(last, place_of(walk[0])) < self.far_m)


class GoalTask(Reach):
    """Reach the place that the goal image shows: where a scripted walk of some steps from the start ended.

    The walk is not remembered. (A world is started twice from the same seed, so the engine plays it too.)
    """

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        _, walks = self._walk(world, starts)
        begun = [world.start(start) for start in starts]
        return [
            StartAndGoal(state, view, walk[-1].frames[-1].copy(), place_of(walk[-1]))
            for (state, view), walk in zip(begun, walks, strict=True)
        ]


class ReturnTask(Reach):
    """Come home: after a scripted walk, which is remembered, reach where it began. The goal image shows it."""

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        states, walks = self._walk(world, starts)
        return [
            StartAndGoal(state, walk[-1], walk[0].frames[-1].copy(), place_of(walk[0]), tuple(walk[:-1]))
            for state, walk in zip(states, walks, strict=True)
        ]


TOGETHER = 16
"""Scenes of `FixedStarts` that are set at once."""


class FixedStarts:
    """Another task, whose scenes are set once, some at a time, and drawn from: as levels are that are fixed in number.

    A scripted walk before every episode takes about as long as half of it, and where many members share a step, all of
    them wait for it. Episodes drawn from the same scene see the same as long as they act the same.

    Args:
        task: by name or as an object.
        count: of scenes; set when the first episode begins, or by `prepare`.
        start: where scene n begins; None draws each start by the seed n.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, task: str | Task, count: int, start: Callable[[int], Start] | None = None) -> None:
        if count < 1:
            raise ValueError(f"there is at least 1 scene; got {count}")
        self.task, self.count, self.start = make_task(task), count, start or Start
        self.samples_goal, self.remembers = self.task.samples_goal, getattr(self.task, "remembers", False)
        self.scenes: list[StartAndGoal] = []
        self.world: str | None = None

    def prepare(self, world: World) -> None:
        """Sets the scenes, in this world or another that plays the same states."""
        from tqdm import tqdm

        scenes: list[StartAndGoal] = []
        with tqdm(total=self.count, desc="setting scenes", unit="scene", mininterval=2.0) as bar:
            while len(scenes) < self.count:
                numbers = range(len(scenes), min(len(scenes) + TOGETHER, self.count))
                scenes += self.task.sample_start_and_goal(world, [self.start(n) for n in numbers])
                bar.update(len(numbers))
        self.scenes, self.world = scenes, world.fingerprint

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`. A start's seed says which scene it is; the rest of it is the scene's own.

        Raises:
            ValueError: a start that asks for more than a seed, or a world that cannot play the scenes.
        """
        for name in ("image", "world_from_camera", "memory", "prompt"):
            if any(getattr(start, name) is not None for start in starts):
                raise ValueError(f"fixed scenes begin where they were set: take another task to begin with a {name}")
        if not world.forkable:
            instead = type(self.task).__name__
            raise ValueError(f"{type(world).__name__} cannot go back to a scene; take {instead} itself")
        if not self.scenes:
            self.prepare(world)
        if world.fingerprint != self.world:
            raise ValueError("these scenes were set in another world; make FixedStarts anew for this one")
        return [self.scenes[np.random.default_rng([start.seed, 3]).integers(self.count)] for start in starts]

    def begin(self, scene: StartAndGoal) -> Any:
        """See `Task`."""
        return self.task.begin(scene)

    def evaluate(self, task_state: Any, view: View) -> TaskStep:
        """See `Task`."""
        return self.task.evaluate(task_state, view)


def unwrap_task(task: Task) -> Task:
    """The task that judges: of fixed scenes, whose they are."""
    return unwrap_task(task.task) if isinstance(task, FixedStarts) else task


def place_of(view: View) -> tuple[float, float]:
    """Where the last camera of a view stands: (x, z), metres."""
    x, z = view.world_from_camera[-1][[0, 2], 3]
    return float(x), float(z)


def _distance_m(view: View, place_m: Sequence[float]) -> float:
    return float(np.hypot(*(view.world_from_camera[-1][[0, 2], 3] - np.asarray(place_m))))


TASKS: dict[str, type[Task]] = {
    "engine": SimulatorTask,
    "explore": ExploreTask,
    "goal": GoalTask,
    "return": ReturnTask,
}
"""Tasks by name."""


def make_task(task: str | Task) -> Task:
    """A task by its name, or the object itself.

    Raises:
        ValueError: an unknown name; the known ones are listed. TypeError: neither name nor task.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; the known ones are {', '.join(sorted(TASKS))}")
        return TASKS[task]()
    if not isinstance(task, Task):
        known = ", ".join(sorted(TASKS))
        lacking = [
            name for name in ("samples_goal", "sample_start_and_goal", "begin", "evaluate") if not hasattr(task, name)
        ]
        raise TypeError(
            f"a task is one of {known}, or an object with what mosaic_gym.envs.tasks.Task names; {task!r} lacks "
            f"{', '.join(lacking)}"
        )
    return task
