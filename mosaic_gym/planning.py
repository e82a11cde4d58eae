"""Planning in the learned world towards a goal image, by CEM or MPPI over imagined futures.

The agent may act in any environment. The planner feeds the agent's views to the learned world (`observe`), whose memory
holds them. For each plan it imagines many futures of the present state, and gives each a cost by how much its views
differ from the goal. If memory holds a view like the goal, futures that end nearer to that view's place cost less.

CEM: Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization" (1999). MPPI: Williams et al.,
"Information Theoretic MPC for Model-Based Reinforcement Learning" (ICRA 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import gymnasium as gym
import numpy as np

from mosaic_gym.deprecation import renamed_arguments, renamed_method
from mosaic_gym.geometry.control import Control, Pose
from mosaic_gym.imagination import imagine
from mosaic_gym.validation import Number, OneOf, Whole, check, validate
from mosaic_gym.worlds.protocol import State, View, World

METHODS = ("cem", "mppi")
MEMORIES = ("on", "place", "off")
"""The parts of the past that a planner may use: all views; the last frame, and all places; or only the last frame."""


@renamed_arguments(recognise_db="match_db", image_price="image_cost_m")  # old spelling
@dataclass(frozen=True)
class Search:
    """How much is imagined; by default a plan takes about two seconds on one core.

    Raises:
        ValueError: a value out of range, or more elites or committed steps than there are.
    """

    method: Annotated[str, OneOf(*METHODS)] = "cem"
    """`cem` fits the next samples to the best ones; `mppi` weights all by their cost."""
    futures: Annotated[int, Whole(1)] = 12
    """Number of futures that are imagined at once."""
    horizon: Annotated[int, Whole(1)] = 4
    """Steps of each future."""
    rounds: Annotated[int, Whole(1)] = 1
    """Rounds of sampling, each of which improves the plan."""
    commit: Annotated[int, Whole(1)] = 2
    """Steps of a plan that are taken before the next one is made."""
    elites: Annotated[int, Whole(1)] = 4
    """The best futures, to which CEM fits."""
    temperature: Annotated[float, Number(above=0.0)] = 0.5
    """Temperature of MPPI's weights, in standard deviations of the costs."""
    match_db: Annotated[float, Number()] = 20.0
    """PSNR (of blurred views) from which a stored view counts as a view of the goal's place."""
    image_cost_m: Annotated[float, Number(0.0)] = 4.0
    """The cost of an image error of 1, the greatest, metres."""

    def __post_init__(self) -> None:
        validate(self)
        if self.elites > self.futures:
            raise ValueError(f"elites are some of the futures; got {self.elites} of {self.futures}")
        if self.commit > self.horizon:
            raise ValueError(f"commit is at most the horizon, {self.horizon} steps; got {self.commit}")


def blurred(frames: np.ndarray) -> np.ndarray:
    """Frames reduced to `[..., 8, 8, 3]` in [0, 1], in which the similarity of two places depends on large shapes."""
    height, width = frames.shape[-3:-1]
    if height % 8 or width % 8:
        raise ValueError(f"a planner compares frames whose sides are multiples of 8 pixels; got {height}x{width}")
    blocks = frames.reshape(*frames.shape[:-3], 8, height // 8, 8, width // 8, 3)
    return blocks.mean((-4, -2)) / 255.0


class Planner:
    """Plans the actions of one agent.

    Args:
        world: a learned world, in which futures are imagined. (A world without `observe` can imagine, but cannot take
            in views.)
        search: how much is imagined.
        memory: what futures are imagined from. `on`: all views. `place`: the last frame alone, with the places that the
            atlas finds from all views. `off`: neither frames nor places.
        seed: of the search.

    Raises:
        ValueError: an unknown memory.
    """

    @renamed_arguments(dream="world")  # old spelling
    def __init__(self, world: World, search: Search = Search(), memory: str = "on", seed: int = 0) -> None:
        self.world, self.search, self.memory = world, search, check("memory", memory, OneOf(*MEMORIES))
        self.rng = np.random.default_rng(seed)
        self.state: State | None = None  # the state that futures are imagined from
        self._located_state: State | None = None  # the state whose memory the atlas locates the agent by
        self.goal: np.ndarray | None = None
        self.plan = np.zeros((search.horizon, 3))
        self.places: list[tuple[np.ndarray, np.ndarray]] = []
        self.pending: list[np.ndarray] = []

    def play(self, env: gym.Env, seed: int) -> tuple[float, bool]:
        """One episode of an environment, from its reset to its end.

        Args:
            env: of a world, with a goal (observation `dict`) and continuous actions.

        Returns:
            The episode's return, and whether the goal was reached in time.

        Raises:
            ValueError: an environment with other spaces; it has not been reset then. TypeError: as `reset`.
        """
        if not isinstance(env.observation_space, gym.spaces.Dict) or not isinstance(env.action_space, gym.spaces.Box):
            raise ValueError(
                "a planner needs the goal image and acts by action vectors: make the environment with "
                "observation='dict' and action_space='continuous'"
            )
        observation, _ = env.reset(seed=seed)
        episode = env.unwrapped.episode
        self.reset([*episode.past_views, episode.view], observation["goal"])
        total = 0.0
        while True:
            _, reward, terminated, truncated, info = env.step(self.act().astype(np.float32))
            total += float(reward)
            if terminated or truncated:
                return total, bool(info.get("is_success", False))
            self.observe(env.unwrapped.view)

    def reset(self, views: Sequence[View], goal: np.ndarray) -> None:
        """Starts from the views so far, oldest first, and the goal image, uint8 `[H, W, 3]`.

        Raises:
            TypeError: a world that cannot take in views.
        """
        for needed in ("start_from_frames", "observe"):
            if not callable(getattr(self.world, needed, None)):
                raise TypeError(
                    f"{type(self.world).__name__} has no {needed}(): a planner that takes in views needs a world with "
                    "one, as MosaicWorld has it"
                )
        self.goal, self.plan, self.places, self.pending = blurred(goal), np.zeros((self.search.horizon, 3)), [], []
        poses = poses_of(views[0], self.world.control)
        self._take_in(self.world.start_from_frames(views[0].frames, poses, seed=0, prompt=""), views[0])
        for view in views[1:]:
            self.observe(view)

    def observe(self, view: View) -> None:
        """Takes in the view of one more step."""
        poses = poses_of(view, self.world.control)
        self._take_in(self.world.observe(self._located_state, view.frames, poses), view)

    def act(self) -> np.ndarray:
        """The next action vector `[3]`: of the present plan or, after its committed steps, of a new one.

        Raises:
            RuntimeError: there is no view yet.
        """
        if self.state is None:
            raise RuntimeError("a planner without views has no plan: call reset(views, goal) first")
        if not self.pending:
            self.pending = list(self.replan()[: self.search.commit])
        self.plan = np.concatenate([self.plan[1:], np.zeros((1, 3))])
        return self.pending.pop(0)

    def replan(self) -> np.ndarray:
        """The best plan `[horizon, 3]` that the search finds, starting from the rest of the last one."""
        search = self.search
        mean, spread = self.plan, np.full((search.horizon, 3), 0.6) * [1.0, 0.4, 1.0]
        for _ in range(search.rounds):
            noise = self.rng.normal(size=(search.futures, search.horizon, 3)) * spread
            noise[0] = 0.0
            plans = np.clip(mean + noise, -1.0, 1.0)
            costs = self.cost(imagine(self.world, self.state, plans))
            if search.method == "cem":
                elite = plans[np.argsort(costs)[: search.elites]]
                mean, spread = elite.mean(0), elite.std(0) + 0.05
            else:
                weights = np.exp(-(costs - costs.min()) / (search.temperature * costs.std() + 1e-6))
                mean = np.tensordot(weights / weights.sum(), plans, axes=1)
        self.plan = mean
        return mean

    def cost(self, futures: Any) -> np.ndarray:
        """`[B]`, metres: how far from the goal each future ends, in images and, where it is known, in place."""
        ends = blurred(futures["frames"][:, -1, -1].cpu().numpy())
        costs = self.search.image_cost_m * np.sqrt(((ends - self.goal) ** 2).mean((1, 2, 3)))
        goal_m = self.goal_place()
        if goal_m is not None:
            places_m = futures["pose"][:, -1].cpu().numpy()[:, [0, 2], 3]
            costs = costs + np.linalg.norm(places_m - goal_m, axis=1)
        return costs

    def goal_place(self) -> np.ndarray | None:
        """(x, z) of the stored view that is most like the goal; None if none is like it."""
        errors = [((image - self.goal) ** 2).mean() for image, _ in self.places]
        best = int(np.argmin(errors))
        if -10 * np.log10(max(errors[best], 1e-9)) < self.search.match_db:
            return None
        return self.places[best][1]

    begin = renamed_method("begin", "reset")  # old spelling
    see = renamed_method("see", "observe")  # old spelling
    price = renamed_method("price", "cost")  # old spelling
    recognised = renamed_method("recognised", "goal_place")  # old spelling

    def _take_in(self, state: State, view: View) -> None:
        """Stores a state and its view, and drops what `memory` excludes."""
        self._located_state = self.state = state
        self.places.append((blurred(view.frames[-1]), view.world_from_camera[-1][[0, 2], 3]))
        if self.memory == "place":
            self.state = replace(state, memory=replace(state.memory, keyframes=state.memory.keyframes[-1:]))
        elif self.memory == "off":
            # The atlas locates the agent by the memory's keyframes, so without any even the last place is unknown.
            self._located_state = replace(state, memory=replace(state.memory, keyframes=(), capacity=0))
            self.state = self._located_state
            self.places = self.places[-1:]


def poses_of(view: View, control: Control) -> list[Pose]:
    """The four poses of a view; the last one's velocity is its last movement, reduced by friction."""
    poses = [Pose(camera) for camera in view.world_from_camera]
    moved_m = view.world_from_camera[-1, :3, 3] - view.world_from_camera[-2, :3, 3]
    return [*poses[:-1], Pose(poses[-1].world_from_camera, moved_m * control.friction)]
