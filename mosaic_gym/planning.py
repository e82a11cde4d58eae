"""Plans in the dream, for a body that may be anywhere: CEM or MPPI over imagined futures, towards a goal image.

The planner sees what the body sees and remembers it as the dream does (`observe`). For each plan it forks the
present into many futures, imagines them, and prices each by how unlike the goal its views are. If it has seen a view
like the goal, futures that end nearer to where that was are cheaper too: that is what memory is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from mosaic_gym.geometry.control import Control, Pose
from mosaic_gym.imagination import check_whole, imagine
from mosaic_gym.worlds.protocol import State, View, World

METHODS = ("cem", "mppi")
MEMORIES = ("on", "place", "off")
"""What a planner may remember: all it saw; the last frame, and all places; or nothing but the last look."""


@dataclass(frozen=True)
class Search:
    """How much is imagined; by default a plan takes about two seconds on one core.

    Attributes:
        method: `cem` keeps the best and looks around them; `mppi` weighs all by their price.
        futures, horizon: imagined at once, and how many steps.
        rounds: of improving the plan.
        commit: steps of a plan that are taken before the next one is made.
        elites: that CEM keeps.
        temperature: of MPPI's weights, in the standard deviation of the prices.
        recognise_db: PSNR (of blurred views) from which a remembered view is taken for the goal's place.
        image_price: what the whole of an image's error costs, in metres.

    Raises:
        ValueError: an unknown method, a count below 1, more elites or steps taken than there are, a temperature that is
            not above 0, or a price below 0. TypeError: a count that is no whole number.
    """

    method: str = "cem"
    futures: int = 12
    horizon: int = 4
    rounds: int = 1
    commit: int = 2
    elites: int = 4
    temperature: float = 0.5
    recognise_db: float = 20.0
    image_price: float = 4.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; the known ones are {', '.join(METHODS)}")
        for name in ("futures", "horizon", "rounds", "commit", "elites"):
            check_whole(name, getattr(self, name))
        if self.rounds < 1 or not 1 <= self.elites <= self.futures or not 1 <= self.commit <= self.horizon:
            raise ValueError(
                "a search has 1 round or more, 1 to all of its futures as elites, and commits to 1 to all steps of its "
                f"horizon; got {self}"
            )
        prices = 0.0 < self.temperature < np.inf and 0.0 <= self.image_price < np.inf
        if not prices or not np.isfinite(self.recognise_db):
            raise ValueError(
                "a search's temperature is above 0, its image_price 0 or more, its recognise_db a number of decibels; "
                f"got {self}"
            )


def blurred(frames: np.ndarray) -> np.ndarray:
    """`[..., 8, 8, 3]` in [0, 1]: places are told by their large shapes."""
    height, width = frames.shape[-3:-1]
    if height % 8 or width % 8:
        raise ValueError(f"a planner compares frames whose sides are multiples of 8 pixels; got {height}x{width}")
    blocks = frames.reshape(*frames.shape[:-3], 8, height // 8, 8, width // 8, 3)
    return blocks.mean((-4, -2)) / 255.0


class Planner:
    """One body's mind: the dream, what is remembered, and the goal.

    Args:
        dream: a learned world, with its memory and atlas. (One without `observe` is planned in, but cannot see.)
        search: how much is imagined.
        memory: what futures are imagined from. `on`: all that was seen. `place`: the last frame alone, and where on the
            map all that was seen tells it to be, and where what was seen. `off`: neither frames nor places.
        seed: of the search.

    Raises:
        ValueError: a memory there is not.
    """

    def __init__(self, dream: World, search: Search = Search(), memory: str = "on", seed: int = 0) -> None:
        if memory not in MEMORIES:
            raise ValueError(f"unknown memory {memory!r}; the known ones are {', '.join(MEMORIES)}")
        self.dream, self.search, self.memory = dream, search, memory
        self.rng = np.random.default_rng(seed)
        self.state: State | None = None  # that futures are imagined from
        self._seen: State | None = None  # and this one holds all that tells the place
        self.goal: np.ndarray | None = None
        self.plan = np.zeros((search.horizon, 3))
        self.places: list[tuple[np.ndarray, np.ndarray]] = []
        self.ahead: list[np.ndarray] = []

    def play(self, env: gym.Env, seed: int) -> tuple[float, bool]:
        """One episode of an environment, from its reset to its end.

        Args:
            env: a world's, with a goal (observation `dict`) and continuous actions.

        Returns:
            The episode's return, and whether the goal was reached before its time was over.

        Raises:
            ValueError: an environment of other spaces; it has not been reset then. TypeError: as `begin`.
        """
        if not isinstance(env.observation_space, gym.spaces.Dict) or not isinstance(env.action_space, gym.spaces.Box):
            raise ValueError(
                "a planner needs the goal image and acts by thrusts: make the environment with observation='dict' and "
                "action_space='continuous'"
            )
        seen, _ = env.reset(seed=seed)
        episode = env.unwrapped.episode
        self.begin([*episode.seen, episode.view], seen["goal"])
        total = 0.0
        while True:
            _, reward, over, cut, info = env.step(self.act().astype(np.float32))
            total += float(reward)
            if over or cut:
                return total, bool(info.get("is_success", False))
            self.see(env.unwrapped.view)

    def begin(self, views: Sequence[View], goal: np.ndarray) -> None:
        """Takes in what was seen so far, oldest first, and the goal image, uint8 `[H, W, 3]`.

        Raises:
            TypeError: a dream that cannot take in what a body sees.
        """
        for needed in ("begin", "observe"):
            if not callable(getattr(self.dream, needed, None)):
                raise TypeError(
                    f"{type(self.dream).__name__} has no {needed}(): a planner that sees needs a world with one, as "
                    "MosaicWorld has it"
                )
        self.goal, self.plan, self.places, self.ahead = blurred(goal), np.zeros((self.search.horizon, 3)), [], []
        poses = poses_of(views[0], self.dream.control)
        self._take_in(self.dream.begin(views[0].frames, poses, seed=0, prompt=""), views[0])
        for view in views[1:]:
            self.see(view)

    def see(self, view: View) -> None:
        """Takes in one more step."""
        self._take_in(self.dream.observe(self._seen, view.frames, poses_of(view, self.dream.control)), view)

    def act(self) -> np.ndarray:
        """The next thrust `[3]`, of the present plan or, if as many were taken as it commits to, of a new one.

        Raises:
            RuntimeError: nothing was seen yet.
        """
        if self.state is None:
            raise RuntimeError("a planner that has seen nothing has no plan: begin(views, goal) first")
        if not self.ahead:
            self.ahead = list(self.replan()[: self.search.commit])
        self.plan = np.concatenate([self.plan[1:], np.zeros((1, 3))])
        return self.ahead.pop(0)

    def replan(self) -> np.ndarray:
        """The best plan `[horizon, 3]` that the search finds, begun from what is left of the last one."""
        search = self.search
        mean, spread = self.plan, np.full((search.horizon, 3), 0.6) * [1.0, 0.4, 1.0]
        for _ in range(search.rounds):
            noise = self.rng.normal(size=(search.futures, search.horizon, 3)) * spread
            noise[0] = 0.0
            plans = np.clip(mean + noise, -1.0, 1.0)
            prices = self.price(imagine(self.dream, self.state, plans))
            if search.method == "cem":
                elite = plans[np.argsort(prices)[: search.elites]]
                mean, spread = elite.mean(0), elite.std(0) + 0.05
            else:
                weights = np.exp(-(prices - prices.min()) / (search.temperature * prices.std() + 1e-6))
                mean = np.tensordot(weights / weights.sum(), plans, axes=1)
        self.plan = mean
        return mean

    def price(self, futures: Any) -> np.ndarray:
        """`[B]`, metres: how far from the goal each future ends, in looks and, where it is known, in place."""
        ends = blurred(futures["frames"][:, -1, -1].cpu().numpy())
        prices = self.search.image_price * np.sqrt(((ends - self.goal) ** 2).mean((1, 2, 3)))
        known_m = self.recognised()
        if known_m is not None:
            places_m = futures["pose"][:, -1].cpu().numpy()[:, [0, 2], 3]
            prices = prices + np.linalg.norm(places_m - known_m, axis=1)
        return prices

    def recognised(self) -> np.ndarray | None:
        """(x, z) where memory has seen what the goal shows; None if it has not."""
        errors = [((look - self.goal) ** 2).mean() for look, _ in self.places]
        best = int(np.argmin(errors))
        if -10 * np.log10(max(errors[best], 1e-9)) < self.search.recognise_db:
            return None
        return self.places[best][1]

    def _take_in(self, state: State, view: View) -> None:
        """Keeps what was just seen, and lets go of what this memory does not hold."""
        self._seen = self.state = state
        self.places.append((blurred(view.frames[-1]), view.world_from_camera[-1][[0, 2], 3]))
        if self.memory == "place":
            self.state = replace(state, memory=replace(state.memory, keyframes=state.memory.keyframes[-1:]))
        elif self.memory == "off":
            # A memory that holds nothing is found nowhere: not even the last frame's place is known then.
            self._seen = self.state = replace(state, memory=replace(state.memory, keyframes=(), capacity=0))
            self.places = self.places[-1:]


def poses_of(view: View, control: Control) -> list[Pose]:
    """The four poses of a view; the last one goes on as the frames before it did, less what friction takes."""
    poses = [Pose(camera) for camera in view.world_from_camera]
    moved_m = view.world_from_camera[-1, :3, 3] - view.world_from_camera[-2, :3, 3]
    return [*poses[:-1], Pose(poses[-1].world_from_camera, moved_m * control.friction)]
