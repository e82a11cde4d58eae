"""Plans in the dream, acts in the engine: CEM or MPPI over imagined futures, towards a goal image.

The planner sees what the body sees and remembers it as the dream does (`observe`). Before each step it forks the
present into many futures, imagines them, and prices each by how unlike the goal its views are. If its memory
holds a view like the goal, futures that end nearer to where that was seen are cheaper too: that is what memory is for.

    python agents/planner.py [--method mppi] [--episodes 40]

Prints the share of return episodes (wander, then come home) that ended at home, in the engine: with memory, and
for a planner that forgets everything but the last frame.
"""

import argparse
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mosaic_gym import Pose, imagine, make_world


@dataclass(frozen=True)
class Search:
    """How much is imagined.

    Attributes:
        method: `cem` keeps the best and looks around them; `mppi` weighs all by their price.
        futures, horizon: imagined at once, and how many steps.
        rounds: of improving the plan.
        commit: steps of a plan that are taken before the next one is made.
        elites: that CEM keeps.
        temperature: of MPPI's weights, in the standard deviation of the prices.
        recognise_db: PSNR (of blurred views) from which a remembered view is taken for the goal's place.
        image_price: what the whole of an image's error costs, in metres.
    """

    method: str = "cem"
    futures: int = 16
    horizon: int = 4
    rounds: int = 2
    commit: int = 1
    elites: int = 4
    temperature: float = 0.5
    recognise_db: float = 20.0
    image_price: float = 4.0


def blurred(frames: np.ndarray) -> np.ndarray:
    """`[..., 8, 8, 3]` in [0, 1]: places are told by their large shapes."""
    height, width = frames.shape[-3:-1]
    blocks = frames.reshape(*frames.shape[:-3], 8, height // 8, 8, width // 8, 3)
    return blocks.mean((-4, -2)) / 255.0


class Planner:
    """One body's mind: the dream, what it remembers, and the goal.

    Args:
        dream: the learned world.
        search: how much is imagined.
        memory: False forgets everything but the last frame.
        seed: of the search.
    """

    def __init__(self, dream, search: Search = Search(), memory: bool = True, seed: int = 0):
        self.dream, self.search, self.memory = dream, search, memory
        self.rng = np.random.default_rng(seed)
        self.state, self.goal, self.plan, self.places, self.ahead = None, None, None, [], []

    def begin(self, views, goal: np.ndarray) -> None:
        """Takes in what was seen so far, oldest first, and the goal image, uint8 `[H, W, 3]`."""
        self.goal, self.plan, self.places, self.ahead = blurred(goal), np.zeros((self.search.horizon, 3)), [], []
        self.state = self.dream.begin(views[0].frames, poses_of(views[0]), seed=0, prompt="")
        self._keep_place(views[0])
        for view in views[1:]:
            self.see(view)

    def see(self, view) -> None:
        """Takes in one more step."""
        self.state = self.dream.observe(self.state, view.frames, poses_of(view))
        self._keep_place(view)
        if not self.memory:
            self.state = self.dream.begin(view.frames, poses_of(view), seed=0, prompt="")
            self.places = self.places[-1:]

    def act(self) -> np.ndarray:
        """The next thrust `[3]`, of the present plan or, if as many were taken as it commits to, of a new one."""
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

    def price(self, futures) -> np.ndarray:
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

    def _keep_place(self, view) -> None:
        self.places.append((blurred(view.frames[-1]), view.world_from_camera[-1][[0, 2], 3]))


def poses_of(view) -> list[Pose]:
    """The four poses of a view; the last one goes on as the frames before it did."""
    poses = [Pose(camera) for camera in view.world_from_camera]
    velocity_m = view.world_from_camera[-1, :3, 3] - view.world_from_camera[-2, :3, 3]
    return [*poses[:-1], Pose(poses[-1].world_from_camera, velocity_m)]


def come_home(env: gym.Env, planner: Planner, seed: int) -> bool:
    """One episode of the return task."""
    seen, _ = env.reset(seed=seed)
    episode = env.unwrapped.episode
    planner.begin([*episode.seen, episode.view], seen["goal"])
    while True:
        seen, _, home, cut, _ = env.step(planner.act().astype(np.float32))
        if home or cut:
            return home
        planner.see(env.unwrapped.view)


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - reach, centre + reach


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("cem", "mppi"), default="cem")
    parser.add_argument("--memory", choices=("on", "off", "both"), default="both")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=24, help="an episode's limit")
    asked = parser.parse_args()
    faces = {"task": "return", "observation": "dict", "action_space": "continuous"}
    env = gym.make("MosaicWorldReal-v0", max_episode_steps=asked.steps, **faces)
    dream = make_world("mosaic")
    search = Search(asked.method, futures=12, rounds=1, commit=2)  # two seconds a plan on two cores
    for arm in ("on", "off") if asked.memory == "both" else (asked.memory,):
        planner = Planner(dream, search, memory=arm == "on")
        came = []
        for index in range(asked.episodes):
            came.append(come_home(env, planner, seed=2_000_009 + 10 * index))
            print(f"episode {index + 1}: {'home' if came[-1] else 'lost'}; so far {np.mean(came):.2f}", flush=True)
        low, high = wilson(sum(came), len(came))
        print(f"memory {arm}: home {np.mean(came):.2f} [{low:.2f}, {high:.2f}] of {len(came)} episodes", flush=True)
    env.close()
