"""Does what was learned in the dream work in the engine?

PPO is trained on the goal task in the dream alone: every episode begins at a recorded place whose surroundings
memory knows, and its goal is a place that the recorded walk came to soon after. Then it walks in the engine, beside
chance, a body that only goes ahead, and PPO trained in the engine for as many frames as the recording has. And: do
returns in the dream rank policies as the engine does?

Everything lands in a folder as it is done, and a second run goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.tasks import GoalTask, Reach, Scene
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.worlds.protocol import Start, World

MEMBERS = 16
EPISODE_STEPS = 32
"""Steps an episode may take, in dream and engine."""
FIRST_TEST_SEED = 2_000_009
"""Of the engine's episodes; tests are on seeds ending in 9, held out from the recording."""
OPTIMIZER = "optimizer."
"""Before the names of the optimiser's tensors in a policy's file."""
Choose = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Actions `[b]` for stacked observations."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate transfer` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes: where the dream's episodes begin."""
    out: Path = Path("out/transfer")
    """Policies and results; what is already there is kept."""
    steps: int = 60_000
    """Steps of PPO in the dream."""
    engine_steps: int | None = None
    """Steps of PPO in the engine; None for as many as the recording has, 0 to leave it out."""
    episodes: int = 200
    """Engine episodes for each arm."""
    rank_episodes: int = 48
    """Episodes, in dream and in engine, for each policy that is ranked; 0 to leave the ranking out."""
    policies: int = 8
    """Kept evenly during training in the dream, from the first to the last, which is the one tested; all are ranked,
    with chance, with a body that only goes ahead, and with the one trained in the engine."""
    places: int = 48
    """Recorded episodes that the dream's begin in."""
    rollout: int = 128
    """Steps of every member between PPO's updates."""
    seed: int = 0
    """Of PPO."""


class RecordedGoalTask(Reach):
    """Reach a later place of a recording: memory holds the recording, the body stands somewhere on its way.

    Args:
        recordings: for each, its memory, last frames uint8 `[S, H, W, 3]` and cameras `[S, 4, 4]`.
        near_m, far_m: how far goals lie.
        reach_m: how near is there.
        within: steps in which the recorded walk came to the goal: it lies ahead, as it does in the engine's task.

    Raises:
        ValueError: no recording has two places so far apart.
    """

    def __init__(
        self,
        recordings: Sequence[tuple[Any, np.ndarray, np.ndarray]],
        near_m: float = 3.0,
        far_m: float = 6.0,
        reach_m: float = 1.0,
        within: int = 16,
    ) -> None:
        super().__init__(reach_m, far_m)
        self.recordings, self.within = recordings, within
        self.ways = [  # (recording, step, the steps that may be its goal)
            (recording, here, goals)
            for recording in recordings
            for here in range(len(recording[1]))
            if len(goals := self._goals(recording[2], here, near_m))
        ]
        if not self.ways:
            raise ValueError(f"no recording has places {near_m} to {far_m} m apart; record longer episodes")

    def _goals(self, cameras: np.ndarray, here: int, near_m: float) -> np.ndarray:
        away_m = np.linalg.norm(cameras[:, [0, 2], 3] - cameras[here, [0, 2], 3], axis=1)
        steps = np.arange(len(cameras)) - here
        return np.flatnonzero((away_m >= near_m) & (away_m <= self.far_m) & (steps > 0) & (steps <= self.within))

    def set_scenes(self, world: World, starts: Sequence[Start]) -> list[Scene]:
        """See `Task`."""
        return [self._scene(world, start) for start in starts]

    def _scene(self, world: World, start: Start) -> Scene:
        rng = np.random.default_rng([start.seed, 2])
        (memory, frames, cameras), here, goals = self.ways[int(rng.integers(len(self.ways)))]
        goal = int(rng.choice(goals))
        begun = replace(start, image=frames[here], world_from_camera=cameras[here], memory=memory)
        state, view = world.start(begun)
        x, z = cameras[goal, [0, 2], 3]
        return Scene(state, view, frames[goal].copy(), (float(x), float(z)))


def recorded_task(config: Config) -> RecordedGoalTask:
    """The dream's task: memories of some recorded training episodes, with estimated depth as in play."""
    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.memory.mosaic import MosaicMemory
    from mosaic_gym.model.checkpoints import WorldModel
    from mosaic_gym.training.samples import remember_all

    store = EpisodeStore(config.data, "train")
    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    recordings = []
    for index, remembered in enumerate(remember_all(store, model.codec, model.depth, config.places)):
        episode = store.load(index)
        memory = MosaicMemory(tuple(remembered.keyframes), model.settings.capacity)
        cameras = episode["world_from_camera"][:, -1].double().numpy()
        recordings.append((memory, episode["frames"][:, -1].numpy(), cameras))
    return RecordedGoalTask(recordings)


def make_policy(env: Any, config: Config) -> Any:
    """PPO that looks at the image, its depth and the goal, one above the other in one small network."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import nn

    class Eyes(BaseFeaturesExtractor):
        def __init__(self, space: Any):
            super().__init__(space, features_dim=128)
            self.see = nn.Sequential(
                nn.Conv2d(7, 16, 6, stride=3), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
                nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(128), nn.ReLU(),
            )  # fmt: skip
            self.see(torch.zeros(1, 7, *space["image"].shape[1:]))

        def forward(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
            # Stable-Baselines3 has already put channels first and scaled to [0, 1].
            near = torch.exp(-seen["depth"][:, None] / 3.0)  # 1 at the eye, 0 far away
            return self.see(torch.cat([seen["image"], seen["goal"], near], dim=1))

    kwargs = {"features_extractor_class": Eyes, "net_arch": [64]}
    return PPO(
        "MultiInputPolicy", env, n_steps=config.rollout, batch_size=256, n_epochs=4, learning_rate=5e-4, ent_coef=0.01,
        gamma=0.97, seed=config.seed, device="cpu", policy_kwargs=kwargs,
    )  # fmt: skip


def train(model: Any, steps: int, keep: Path, count: int) -> None:
    """Trains, with a bar, and keeps `count` policies evenly from the first to the last, as safetensors.

    Cut off, it goes on from the last policy kept, with its optimiser; episodes begin anew.
    """
    from safetensors.torch import save_file
    from stable_baselines3.common.callbacks import BaseCallback
    from tqdm import tqdm

    marks = np.linspace(0, steps, count).round().astype(int).tolist()
    keep.mkdir(parents=True, exist_ok=True)
    done = max((index for index in range(count) if (keep / f"{index}.safetensors").is_file()), default=None)
    if done is not None:
        model.num_timesteps = load_policy(model, keep / f"{done}.safetensors")
        del marks[: done + 1]

    class Keeper(BaseCallback):
        def _on_training_start(self) -> None:
            self.bar = tqdm(total=steps, unit="step", mininterval=2.0, desc=keep.name)

        def _on_step(self) -> bool:
            self.bar.n = min(self.num_timesteps, steps)
            self.bar.update(0)
            return True

        def _on_rollout_start(self) -> None:
            self._keep()

        def _on_training_end(self) -> None:
            self._keep()
            self.bar.close()

        def _keep(self) -> None:
            while marks and self.num_timesteps >= marks[0]:
                tensors = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
                for index, state in self.model.policy.optimizer.state_dict()["state"].items():
                    tensors |= {f"{OPTIMIZER}{index}.{name}": value.clone() for name, value in state.items()}
                told = {"num_timesteps": str(self.num_timesteps)}
                save_file(tensors, keep / f"{count - len(marks)}.safetensors", metadata=told)
                marks.pop(0)

    model.learn(steps - model.num_timesteps, callback=Keeper(), reset_num_timesteps=False)


def load_policy(model: Any, path: Path) -> int:
    """Gives the model the policy in a file, with its optimiser; returns the steps it has trained for."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = file.metadata() or {}
    model.policy.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)})
    optimizer = model.policy.optimizer.state_dict()
    optimizer["state"] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
    model.policy.optimizer.load_state_dict(optimizer)
    return int(told.get("num_timesteps", 0))


def chooser(model: Any, weights: Path) -> Choose:
    """Draws actions from the policy in a file."""
    load_policy(model, weights)
    return lambda seen: model.predict(seen, deterministic=False)[0]


def at_random(seed: int) -> Choose:
    """Every action as likely."""
    rng = np.random.default_rng(seed)
    return lambda seen: rng.integers(len(ACTIONS), size=len(seen["image"]))


def ahead_only() -> Choose:
    """Forward, whatever is seen."""
    return lambda seen: np.full(len(seen["image"]), list(ACTIONS).index("forward"))


def open_engine(size: tuple[int, int]) -> Any:
    """The goal task in the engine, `size` (height, width)."""
    import gymnasium as gym

    import mosaic_gym  # noqa: F401, registers the ids

    faces = {"task": GoalTask(), "observation": "dict", "resolution": list(size)}
    return gym.make("MosaicWorldReal-v0", max_episode_steps=EPISODE_STEPS, **faces)


def walk_in_engine(choose: Choose, episodes: int, label: str, size: tuple[int, int]) -> list[dict[str, float]]:
    """Goal episodes in the engine: return and success of each."""
    from tqdm import tqdm

    env = open_engine(size)
    told = []
    for index in tqdm(range(episodes), desc=label, unit="episode", mininterval=2.0):
        seen, _ = env.reset(seed=FIRST_TEST_SEED + 10 * index)
        total, over, success = 0.0, False, False
        while not over:
            action = int(choose({key: value[None] for key, value in seen.items()})[0])
            seen, reward, success, cut, _ = env.step(action)
            total += reward
            over = success or cut
        told.append({"return": total, "success": float(success)})
    env.close()
    return told


def walk_in_dream(env: Any, choose: Choose, episodes: int) -> list[dict[str, float]]:
    """Episodes in the dream, many at once: as many of every member, and at least `episodes` in all.

    (The first to end would be the successful ones.)
    """
    env.seed(7)
    each = -(-episodes // env.num_envs)
    seen, told, totals = env.reset(), [[] for _ in range(env.num_envs)], np.zeros(env.num_envs)
    while min(len(mine) for mine in told) < each:
        seen, rewards, dones, infos = env.step(choose(seen))
        totals += rewards
        for i in np.flatnonzero(dones):
            told[i].append({"return": float(totals[i]), "success": float(not infos[i]["TimeLimit.truncated"])})
            totals[i] = 0.0
    return [one for mine in told for one in mine[:each]]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made first if it is not there."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def evaluate(config: Config) -> dict[str, Any]:
    """Trains what is missing, tests it, prints the table, and writes `transfer.json` and `transfer.png`.

    Raises:
        ValueError: a count below its least, or results of another checkpoint. FileNotFoundError: nothing is recorded.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.envs.sb3 import make_sb3
    from mosaic_gym.evaluation.metrics import interval

    if min(config.episodes, config.policies) < 2 or min(config.steps, config.places) < 1:
        raise ValueError("give at least 2 episodes, 2 policies, 1 step and 1 place")
    store = EpisodeStore(config.data, "train")
    config.out.mkdir(parents=True, exist_ok=True)
    faces = {"observation": "dict", "max_episode_steps": EPISODE_STEPS, "checkpoint": config.checkpoint}
    dream = VecTransposeImage(make_sb3(MEMBERS, task=recorded_task(config), **faces))
    told = kept(config.out / "checkpoint.json", lambda: {"fingerprint": dream.venv.members.world.fingerprint})
    if told["fingerprint"] != dream.venv.members.world.fingerprint:
        dream.close()
        raise ValueError(f"{config.out} holds what was found with another checkpoint; give another --out, or empty it")
    size = dream.observation_space["image"].shape[1:]
    model = make_policy(dream, config)
    count = config.policies
    policies = [config.out / "dream" / f"{index}.safetensors" for index in range(count)]
    if not policies[-1].is_file():
        train(model, config.steps, config.out / "dream", count)
    arms = {"random": partial(at_random, config.seed), "ahead": ahead_only}
    arms["dream"] = partial(chooser, model, policies[-1])

    recorded = sum(len(store.load(index)) for index in range(len(store)))
    engine_steps = recorded if config.engine_steps is None else config.engine_steps
    if engine_steps:
        if not (config.out / "engine" / "1.safetensors").is_file():
            engines = VecTransposeImage(DummyVecEnv([lambda: open_engine(size)] * 4))
            train(make_policy(engines, config), engine_steps, config.out / "engine", 2)
            engines.close()
        arms["engine"] = partial(chooser, model, config.out / "engine" / "1.safetensors")

    found: dict[str, Any] = {"arms": {}, "config": {**vars(config), "data": str(config.data), "out": str(config.out)}}
    for name, choose in arms.items():
        path = config.out / f"engine_{name}.json"
        told = kept(path, lambda: walk_in_engine(choose(), config.episodes, f"{name} in the engine", size))  # noqa: B023
        found["arms"][name] = {key: interval([one[key] for one in told]) for key in ("success", "return")}
        figure = found["arms"][name]["success"]
        print(f"{name:<8} success in the engine {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    ratio = found["arms"]["dream"]["success"]["value"] / max(found["arms"]["random"]["success"]["value"], 1e-9)
    found["success_over_random"] = ratio
    print(f"trained in the dream only, over random: {ratio:.2f} x (goal >= 2, intervals apart)")
    if config.rank_episodes:
        # What is kept on the way to one policy differs little; the others widen the range of good and bad.
        ranked = {weights.stem: partial(chooser, model, weights) for weights in policies}
        ranked |= {name: choose for name, choose in arms.items() if name != "dream"}
        found["ranking"] = rank(config, dream, ranked, size)
    (config.out / "transfer.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(config.out / "transfer.png", found)
    dream.close()
    return found


def rank(
    config: Config, dream: Any, policies: Mapping[str, Callable[[], Choose]], size: tuple[int, int]
) -> dict[str, Any]:
    """Mean returns of policies, in dream and engine, and their rank correlation."""
    from scipy.stats import spearmanr

    pairs = {}
    for name, choose in policies.items():
        there = kept(
            config.out / f"rank_dream_{name}.json",
            lambda: walk_in_dream(dream, choose(), config.rank_episodes),  # noqa: B023
        )
        here = kept(
            config.out / f"rank_engine_{name}.json",
            lambda: walk_in_engine(choose(), config.rank_episodes, f"policy {name}", size),  # noqa: B023
        )
        pairs[name] = [float(np.mean([one["return"] for one in told])) for told in (there, here)]
        print(f"policy {name:<8} mean return {pairs[name][0]:6.2f} in the dream, {pairs[name][1]:6.2f} in the engine")
    rho = float(spearmanr(*np.array(list(pairs.values())).T).statistic)
    print(f"Spearman rank correlation of {len(pairs)} policies' returns, dream against engine: {rho:.2f} (goal >= 0.8)")
    return {"returns_dream_engine": pairs, "spearman": rho}


def draw(path: Path, found: dict[str, Any]) -> None:
    """Successes with their intervals, and the ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    names = list(found["arms"])
    rows = [found["arms"][name]["success"] for name in names]
    values = [row["value"] for row in rows]
    reach = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    left.bar(names, values, yerr=reach, capsize=4, color=["0.8", "0.6", "tab:blue", "tab:green"][: len(names)])
    left.set(ylabel="success in the engine", title="goal task; where each policy was trained")
    if "ranking" in found:
        pairs = found["ranking"]["returns_dream_engine"]
        dream, engine = np.array(list(pairs.values())).T
        right.plot(dream, engine, "o")
        for name, place in pairs.items():
            right.annotate(name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        right.set(xlabel="mean return in the dream", ylabel="mean return in the engine")
        right.set_title(f"policies, rank correlation {found['ranking']['spearman']:.2f}")
    else:
        right.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)
