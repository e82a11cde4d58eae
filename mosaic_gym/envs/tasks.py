"""Tasks: start, goal, reward and termination of an episode, computed from views and never from the network.

A task object keeps no state. What a task has to carry from step to step is its task state, a value that belongs to the
episode, so that one task object serves many episodes at once. A task state consists of types that JSON has (arrays are
written as lists, tuples are not accepted), so that a saved episode continues unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mosaic_gym.deprecation import warn_renamed
from mosaic_gym.geometry.steering import DepthWalker
from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.protocol import Start, State, View, World


@dataclass(frozen=True)
class StartAndGoal:
    """How an episode starts, and its goal.

    Attributes:
        state: of the world.
        view: of that state.
        goal: uint8 `[H, W, 3]`, the goal image of the observation.
        goal_m: `[2]` (x, z) of the place to reach, metres; None for tasks without one.
        past_views: views before the present one, oldest first: a walk that an agent with its own memory should see.
    """

    state: State
    view: View
    goal: np.ndarray
    goal_m: tuple[float, float] | None = None
    past_views: tuple[View, ...] = ()


@dataclass(frozen=True)
class TaskStep:
    """A task's evaluation of one step.

    Attributes:
        task_state: for the next step.
        reward: of this step.
        terminated: whether the task is over.
        success: whether this step did what the task asks for; None for a task without a notion of success.
    """

    task_state: Any
    reward: float
    terminated: bool
    success: bool | None = False


@runtime_checkable
class Task(Protocol):
    """Start, goal, reward and termination of an episode, from views only."""

    samples_goal: bool
    """Whether the task chooses the goal, which the observation then has to contain.

    A task whose `evaluate` needs a task state may also set `needs_task_state = True`: `imagine` then refuses to run
    without one.
    """

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """One sample for each start; batched, so that a learned world prepares many at once.

        In a world that is not forkable this starts an episode, and may walk through it: the previous episode is over
        then, even if this raises.
        """
        ...

    def initial_task_state(self, sample: StartAndGoal) -> Any:
        """The task state after the first view, in JSON's types."""
        ...

    def evaluate(self, task_state: Any, view: View) -> TaskStep:
        """Reward and termination of the step that led to `view`."""
        ...


class _WorldStart:
    """The world's own start; the goal image is the first view."""

    samples_goal = False

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        started = [world.start(start) for start in starts]
        return [StartAndGoal(state, view, view.frames[-1].copy()) for state, view in started]


class ExploreTask(_WorldStart):
    """Rewards surface in view for the first time, in square metres, from lifted geometry.

    The view's depth is lifted on a grid of points; each cube of space of `cell_m` that holds one counts once.

    Args:
        cell_m: side of a cube, metres.
        far_m: points farther away do not count: their depth is too coarse.
        stride_px: of the grid.
    """

    needs_task_state = True

    def __init__(self, cell_m: float = 1.0, far_m: float = 8.0, stride_px: int = 4) -> None:
        self.cell_m, self.far_m, self.stride_px = cell_m, far_m, stride_px

    def initial_task_state(self, sample: StartAndGoal) -> np.ndarray:
        """The cubes in view at the start, int64 `[n]`."""
        return self._cubes(sample.view)

    def evaluate(self, task_state: np.ndarray, view: View) -> TaskStep:
        """Counts the cubes that are new; never terminates."""
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

    def initial_task_state(self, sample: StartAndGoal) -> None:
        """None: the task needs no state."""

    def evaluate(self, task_state: None, view: View) -> TaskStep:
        """Passes on the reward and the end in the view."""
        return TaskStep(None, view.reward, view.terminated, success=None)


WALKS = 8
"""How often a scripted walk is tried again that ends where it started, or ends the episode."""
TURNS = (6, 19)
"""Steps of turning at the start of another attempt: a sixth of a turn to half of one."""


class Reach:
    """Reaching a place: the reward is the metres gained, and `BONUS` on arrival, which terminates the episode.

    Sampling takes scripted walks. In the simulator they move the only body: a reset that finds no walk which leads away
    (RuntimeError) has ended the previous episode, and the next reset starts another.
    """

    samples_goal = True
    needs_task_state = True
    BONUS = 5.0

    def __init__(self, reach_m: float = 1.0, far_m: float = 5.0, steps: tuple[int, int] = (8, 14)) -> None:
        self.reach_m, self.far_m, self.steps = reach_m, far_m, steps

    def initial_task_state(self, sample: StartAndGoal) -> dict[str, Any]:
        """Where the goal is, and how far, metres."""
        return {"goal_m": list(sample.goal_m), "left_m": _distance_m(sample.view, sample.goal_m)}

    def evaluate(self, task_state: dict[str, Any], view: View) -> TaskStep:
        """Metres gained towards the goal; terminates when it is reached."""
        left_m = _distance_m(view, task_state["goal_m"])
        reached = left_m <= self.reach_m
        reward = task_state["left_m"] - left_m + (self.BONUS if reached else 0.0)
        return TaskStep({**task_state, "left_m": left_m}, reward, reached, reached)

    def _walk(self, world: World, starts: Sequence[Start]) -> tuple[list[State], list[list[View]]]:
        """Scripted walks, each until it is `far_m` away if it finds a way there: last states, and all views.

        A walk that came back, or ended, would give an episode that is over before it starts: it is tried again.

        Raises:
            RuntimeError: from some start no walk gets further away than the distance that counts as arrival.
        """
        last: list[State] = [None] * len(starts)
        walks: list[list[View]] = [[] for _ in starts]
        missing = list(range(len(starts)))
        for attempt in range(WALKS):
            states, views = self._walk_once(world, [starts[i] for i in missing], attempt)
            for i, state, walk in zip(missing, states, views, strict=True):
                last[i], walks[i] = state, walk
            missing = [i for i in missing if not self._leads_away(walks[i])]
            if not missing:
                return last, walks
        seeds = [starts[i].seed for i in missing]
        raise RuntimeError(
            f"{WALKS} scripted walks from the starts of seeds {seeds} came no further than {self.reach_m} m, which "
            "counts as arrival; start elsewhere, or make the task with a smaller reach_m or more steps"
        )

    def _leads_away(self, walk: Sequence[View]) -> bool:
        return not walk[-1].terminated and _distance_m(walk[-1], place_of(walk[0])) > self.reach_m

    def _walk_once(self, world: World, starts: Sequence[Start], attempt: int) -> tuple[list[State], list[list[View]]]:
        rngs = [np.random.default_rng([start.seed, 1, *([attempt] if attempt else [])]) for start in starts]
        walkers = [DepthWalker(rng) for rng in rngs]
        # A walk that came back would come back again: another attempt turns away first.
        turns = [int(rng.integers(*TURNS)) if attempt else 0 for rng in rngs]
        sides = [float(rng.choice((-1, 1))) if attempt else 0.0 for rng in rngs]
        steps = [n + int(rng.integers(self.steps[0], self.steps[1] + 1)) for n, rng in zip(turns, rngs, strict=True)]
        started = [world.start(start) for start in starts]
        latest, walks = [state for state, _ in started], [[view] for _, view in started]
        for step in range(3 * self.steps[1] + max(turns)):
            active = [i for i in range(len(starts)) if self._continues(step, steps[i], walks[i])]
            if not active:
                break
            action_vectors = np.stack([
                (0.0, 0.0, sides[i]) if step < turns[i] else walkers[i].act(walks[i][-1].depth_m)
                for i in active
            ])  # fmt: skip
            states, views = world.step([latest[i] for i in active], action_vectors)
            for i, state, view in zip(active, states, views, strict=True):
                latest[i] = state
                walks[i].append(view)
        return latest, walks

    def _continues(self, step: int, steps: int, walk: Sequence[View]) -> bool:
        last = walk[-1]
        return not last.terminated and (step < steps or _distance_m(last, place_of(walk[0])) < self.far_m)


class GoalTask(Reach):
    """Reach the place of the goal image: where a scripted walk of some steps from the start ended.

    The walk is not in the episode's memory. (The world is started twice with the same seed, so that the simulator
    supports the task too.)
    """

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        _, walks = self._walk(world, starts)
        started = [world.start(start) for start in starts]
        return [
            StartAndGoal(state, view, walk[-1].frames[-1].copy(), place_of(walk[-1]))
            for (state, view), walk in zip(started, walks, strict=True)
        ]


class ReturnTask(Reach):
    """Return home: after a scripted walk, which is in memory, reach its start, which the goal image shows."""

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`."""
        states, walks = self._walk(world, starts)
        return [
            StartAndGoal(state, walk[-1], walk[0].frames[-1].copy(), place_of(walk[0]), tuple(walk[:-1]))
            for state, walk in zip(states, walks, strict=True)
        ]


TOGETHER = 16
"""How many starts and goals `FixedStarts` samples at once."""


class FixedStarts:
    """Another task with a fixed number of starts and goals, which are sampled once and drawn from by seed.

    A scripted walk before every episode takes about as long as half of the episode, and where many sub-environments
    share a step, all of them wait for it. Episodes from the same start are equal as long as their actions are.

    Args:
        task: by name or as an object.
        count: of starts; sampled when the first episode starts, or by `prepare`.
        start: the start of a number below `count`; None makes each start from its number as the seed.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, task: str | Task, count: int, start: Callable[[int], Start] | None = None) -> None:
        self.count = check("the number of fixed starts", count, Whole(1))
        self.task, self.start = make_task(task), start or Start
        self.samples_goal = self.task.samples_goal
        self.needs_task_state = getattr(self.task, "needs_task_state", False)
        self.samples: list[StartAndGoal] = []
        self.world: str | None = None

    def prepare(self, world: World) -> None:
        """Samples all starts and goals, in this world or another with the same fingerprint."""
        from tqdm import tqdm

        samples: list[StartAndGoal] = []
        with tqdm(total=self.count, desc="sampling starts", unit="start", mininterval=2.0) as bar:
            while len(samples) < self.count:
                numbers = range(len(samples), min(len(samples) + TOGETHER, self.count))
                samples += self.task.sample_start_and_goal(world, [self.start(n) for n in numbers])
                bar.update(len(numbers))
        self.samples, self.world = samples, world.fingerprint

    def sample_start_and_goal(self, world: World, starts: Sequence[Start]) -> list[StartAndGoal]:
        """See `Task`. A start's seed chooses the sample.

        Raises:
            ValueError: a start with more than a seed, or a world in which the samples are not valid.
        """
        for name in ("image", "world_from_camera", "memory", "prompt"):
            if any(getattr(start, name) is not None for start in starts):
                raise ValueError(f"fixed starts cannot start with a given {name}: take another task for that")
        if not world.forkable:
            instead = type(self.task).__name__
            raise ValueError(f"{type(world).__name__} cannot return to a sampled start; take {instead} itself")
        if not self.samples:
            self.prepare(world)
        if world.fingerprint != self.world:
            raise ValueError("these starts were sampled in another world; make a new FixedStarts for this one")
        return [self.samples[np.random.default_rng([start.seed, 3]).integers(self.count)] for start in starts]

    def initial_task_state(self, sample: StartAndGoal) -> Any:
        """See `Task`."""
        return self.task.initial_task_state(sample)

    def evaluate(self, task_state: Any, view: View) -> TaskStep:
        """See `Task`."""
        return self.task.evaluate(task_state, view)


def unwrap_task(task: Task) -> Task:
    """The task that evaluates: inside `FixedStarts`, the task that it was made with."""
    return unwrap_task(task.task) if isinstance(task, FixedStarts) else task


def place_of(view: View) -> tuple[float, float]:
    """Where the last camera of a view stands: (x, z), metres."""
    x, z = view.world_from_camera[-1][[0, 2], 3]
    return float(x), float(z)


def _distance_m(view: View, place_m: Sequence[float]) -> float:
    return float(np.hypot(*(view.world_from_camera[-1][[0, 2], 3] - np.asarray(place_m))))


TASKS: dict[str, type[Task]] = {
    "explore": ExploreTask,
    "goal": GoalTask,
    "return": ReturnTask,
    "simulator": SimulatorTask,
}
"""Tasks by name."""
METHODS = ("samples_goal", "sample_start_and_goal", "initial_task_state", "evaluate")
"""The attributes of a task object."""
RENAMED = {
    "draws_goal": "samples_goal",
    "set_scenes": "sample_start_and_goal",  # old spelling
    "begin": "initial_task_state",
    "judge": "evaluate",  # old spelling
}
"""The names of the same attributes in the version before, for the message."""


def make_task(task: str | Task) -> Task:
    """A task by its name, or the object itself.

    Raises:
        ValueError: an unknown name; the known ones are listed. TypeError: neither a name nor a task.
    """
    if isinstance(task, str):
        if task == "engine":  # old spelling
            warn_renamed("task='engine'", "task='simulator'")  # old spelling
            task = "simulator"
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; the known ones are {', '.join(sorted(TASKS))}")
        return TASKS[task]()
    if not isinstance(task, Task):
        missing = [name for name in METHODS if not hasattr(task, name)]
        renamed = [f"{old} is now {new}" for old, new in RENAMED.items() if new in missing and hasattr(task, old)]
        hint = f" (renamed: {', '.join(renamed)}; task states and TaskStep: see the changelog)" if renamed else ""
        raise TypeError(
            f"a task is one of {', '.join(sorted(TASKS))}, or an object with the attributes of "
            f"mosaic_gym.Task; {task!r} lacks {', '.join(missing)}{hint}"
        )
    return task
