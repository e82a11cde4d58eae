"""Does what was learned in the dream work in the engine?

PPO is trained on the goal task in the dream alone: every episode begins at a recorded place whose surroundings
memory knows, and its goal is where a scripted walk, dreamt as well, ended. Then it walks in the engine, beside chance,
a body that only goes ahead, a scripted walker, and PPO trained in the engine for as many frames as the recording has.
And: do returns in the dream rank policies, from bad to good, as the engine does, over the same episodes at held-out
recorded places, where goals are what the recorded walk went on to?

And a planner (CEM over forks of the dream) walks home in the engine, where it has just wandered: with its memory,
without frames, and without frames and places.

Everything lands in a folder as it is done, and a second run goes on from there; asked for more episodes, it adds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_gym.envs.tasks import GoalTask, Task

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.evaluation.suites.transfer.policies import Choose
    from mosaic_gym.model.checkpoints import WorldModel, WorldSettings

MEMBERS = 16
EPISODE_STEPS = 32
"""Steps an episode may take, in dream and engine."""
PLAN_STEPS = 24
"""Steps that a planner's episode may take to come home."""
FIRST_TEST_SEED = 2_000_009
"""Of the engine's episodes, the planner's too; tests are on seeds ending in 9, held out from the recording."""
FIRST_RANK_SEED = 7
"""Of the episodes at held-out recorded places, counted up: the same in dream and engine."""
BLIND = {"turning": "turn_right", "backing": "backward", "sidling": "right", "circling": "forward_turn_right"}
"""Policies that are ranked beside the arms, by the action they repeat."""
DOZING = (0.5, 0.75, 0.9)
"""Further ones: the script, by the share of its steps that it stands still."""
RECIPE = ("data", "steps", "simulator_steps", "policies", "places", "scenes", "rollout", "seed")
"""Of `Config`: a folder of results is of one choice of these."""
RULES = 2
"""What the dream does with a body, counted up when that changes: results of others do not go together."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate transfer` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes: where the dream's episodes begin."""
    out: Path = Path("out/transfer")
    """Policies and results; what is already there is kept."""
    runs: int = 2
    """Of PPO in the dream, with seeds counted up: they differ by more than episodes tell. (The engine has one.)"""
    steps: int = 60_000
    """Steps of PPO in the dream, for each run."""
    simulator_steps: int | None = None
    """Steps of PPO in the engine; None for as many as the recording has, 0 to leave it out."""
    episodes: int = 200
    """Engine episodes for each arm."""
    rank_episodes: int = 96
    """Episodes, in dream and in engine, for each policy that is ranked: at least 2; 0 to leave the ranking out."""
    plan_episodes: int = 30
    """Engine episodes of the return task for the planner with memory, without frames, and without frames and places:
    at least 2, some 35 seconds each on one core; 0 to leave it out."""
    policies: int = 8
    """Kept during training, in dream and engine, from the first to the last, which is the one tested; training that was
    cut off goes on from the last that was kept."""
    places: int = 96
    """Recorded episodes that the dream's begin in."""
    scenes: int = 320
    """Goals that are walked to in the dream before training, for its episodes to draw from."""
    rollout: int = 32
    """Steps of every member between PPO's updates."""
    seed: int = 0
    """Of PPO's first run, scenes and chance. (The planner draws its plans from each episode's own seed.)"""


def open_simulator(settings: WorldSettings, task: Task | None = None, members: int = 1) -> VecEnv:
    """The goal task, or another, in as many engines, which play what a checkpoint of these settings was trained on."""
    import gymnasium as gym
    from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

    import mosaic_gym  # noqa: F401, registers the ids
    from mosaic_gym.evaluation.suites.transfer.policies import WayFromStart

    faces = {"task": task or GoalTask(), "observation": "dict"}
    faces |= {"scenario": settings.scenario, "resolution": [settings.height, settings.width]}
    engines = [lambda: gym.make("MosaicWorldReal-v0", max_episode_steps=EPISODE_STEPS, **faces)] * members
    return WayFromStart(VecTransposeImage(DummyVecEnv(engines)))


def walk(env: VecEnv, choose: Choose, seeds: range, label: str) -> list[dict[str, float]]:
    """Return and success of one episode for each seed, as many at once as there are members."""
    from tqdm import tqdm

    told: list[dict[str, float]] = []
    with tqdm(total=len(seeds), desc=label, unit="episode", mininterval=2.0) as bar:
        while len(told) < len(seeds):
            # Members take consecutive seeds; steps between seeds are for one member alone.
            env.seed(seeds[len(told)])
            seen, totals = env.reset(), np.zeros(env.num_envs)
            ends: list[dict[str, float] | None] = [None] * env.num_envs
            while None in ends:
                seen, rewards, dones, infos = env.step(choose(seen))
                totals += rewards
                for i in np.flatnonzero(dones):
                    success = float(infos[i].get("is_success", False))
                    ends[i] = ends[i] or {"return": float(totals[i]), "success": success}
            told += ends
            bar.update(len(ends))
    return told[: len(seeds)]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made first if it is not there."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def walked(
    path: Path, open_env: Callable[[], VecEnv], choose: Callable[[int], Choose], seeds: range, seed: int, label: str
) -> list[dict[str, float]]:
    """What `walk` told of the seeds, from a file; seeds that it lacks are walked first, and added.

    Episodes that are added draw their actions from another seed than those before them.
    """
    told = kept(path, list)
    if len(told) < len(seeds):
        told += walk(open_env(), choose(seed + len(told)), seeds[len(told) :], label)
        path.write_text(json.dumps(told, indent=1) + "\n")
    return told[: len(seeds)]


def evaluate(config: Config) -> dict[str, Any]:
    """Trains what is missing, tests it, prints the table, and writes `transfer.json` and `transfer.png`.

    Raises:
        ValueError: a count below its least, a checkpoint without an atlas, or results of another checkpoint, recording
            or choice. FileNotFoundError: nothing is recorded.
    """
    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.evaluation.suites.transfer import policies as known
    from mosaic_gym.evaluation.reports.transfer_plot import draw
    from mosaic_gym.evaluation.suites.transfer.tasks import RecordedGoalTask, remembered, simulator_task
    from mosaic_gym.model.checkpoints import WorldModel

    if min(config.episodes, config.policies) < 2 or min(config.steps, config.places, config.scenes, config.runs) < 1:
        raise ValueError("give at least 2 episodes, 2 policies, 1 run, 1 step, 1 place and 1 scene")
    for name in ("rank_episodes", "plan_episodes"):
        if (count := getattr(config, name)) < 0 or count == 1:
            raise ValueError(f"{name.replace('_', '-')} is at least 2, or 0 to leave them out; got {count}")
    store = EpisodeStore(config.data, "train")
    world = WorldModel.from_pretrained(config.checkpoint)
    if world.atlas is None:
        raise ValueError(
            f"{config.checkpoint} has no atlas, by which the recording's places are found; train one (mosaic-gym train "
            "atlas), and a world with it"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    # What policies were trained by; episodes may be added.
    recipe = {name: str(getattr(config, name)) for name in RECIPE}
    recipe |= {"recording": store.fingerprint, "rules": str(RULES)}
    asked = {"fingerprint": world.fingerprint, **recipe}
    told = kept(config.out / "checkpoint.json", lambda: asked)
    if told["fingerprint"] != world.fingerprint:
        raise ValueError(f"{config.out} holds what was found with another checkpoint; give another --out, or empty it")
    differs = sorted(name for name in recipe if told.get(name) != asked[name])
    if differs:
        was = ", ".join(f"{name}={told.get(name)}" for name in differs)
        raise ValueError(f"{config.out} holds what was found with {was}; ask for the same, or give another --out")

    engine = open_simulator(world.settings)
    model = known.make_policy(engine, config.rollout, config.seed)
    train_in_learned_world(config, store, world)
    variants: dict[str, list[Callable[[int], Choose]]] = {
        "random": [known.at_random],
        "ahead": [partial(known.always, "forward")],
        "scripted": [known.scripted],
        "dream": [partial(known.learnt, model, tested_policy(config, name)) for name in names_of("dream", config)],
    }
    recorded = sum(len(store.load(index)) for index in range(len(store)))
    simulator_steps = recorded if config.simulator_steps is None else config.simulator_steps
    if simulator_steps:
        variants["engine"] = [partial(known.learnt, model, train_in_simulator(config, world.settings, simulator_steps))]

    found: dict[str, Any] = {"arms": {}, "config": {**vars(config), "data": str(config.data), "out": str(config.out)}}
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10 * config.episodes, 10)
    for name, runs in variants.items():
        told = [
            walked(
                config.out / f"engine_{each}.json", lambda: engine, choose, seeds, config.seed, f"{each} in the engine"
            )
            for each, choose in zip(names_of(name, config), runs, strict=True)
        ]
        found["arms"][name] = figures(told)
        figure = found["arms"][name]["success"]
        line = f"{name:<8} success in the engine {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        by_run = ", ".join(f"{value:.3f}" for value in found["arms"][name]["success_of_runs"])
        print(line + (f", by run {by_run}" if len(runs) > 1 else ""))
    engine.close()
    dreamt, chance = (found["arms"][name]["success"]["value"] for name in ("dream", "random"))
    found["success_over_random"] = dreamt / chance if chance else None
    ratio = f"{dreamt / chance:.2f} x" if chance else "chance never came there"
    print(f"trained in the dream only, over random: {ratio} (goal >= 2 x, intervals apart)")
    if config.rank_episodes:
        # From bad to good, by design: what training keeps on its way to one policy is too much alike to have an order.
        ranked = {name: partial(known.always, action) for name, action in BLIND.items()}
        ranked |= {f"dozing_{share:.0%}": partial(known.dozing, share) for share in DOZING}
        for variant, runs in variants.items():
            ranked |= zip(names_of(variant, config), runs, strict=True)
        heldout = EpisodeStore(config.data, "heldout")
        places = {
            "dream": lambda: open_learned_world(config, RecordedGoalTask(remembered(heldout, world))),
            "engine": lambda: open_simulator(world.settings, simulator_task(heldout)),
        }
        found["ranking"] = rank(config, places, ranked)
    if config.plan_episodes:
        found["planner"] = plan(config, world)
    (config.out / "transfer.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(config.out / "transfer.png", found)
    return found


def names_of(variant: str, config: Config) -> list[str]:
    """One for each run of the arm that is trained in the dream, and of another the arm itself."""
    return [f"{variant}_{run}" for run in range(config.runs)] if variant == "dream" else [variant]


def tested_policy(config: Config, name: str) -> Path:
    """Where a run of PPO, of this name, keeps the policy that it ends with."""
    return config.out / name / f"{config.policies - 1}.safetensors"


def figures(told: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    """Success and return of an arm, from what each of its runs told of the same episodes.

    Of one run the intervals are of that policy, over episodes; of several they are of what such runs come to.
    """
    from mosaic_gym.evaluation.metrics import interval, runs_interval, share_interval

    success, gained = (np.array([[one[key] for one in run] for run in told]) for key in ("success", "return"))
    of_runs = {"success_of_runs": success.mean(1).tolist()}
    if len(told) == 1:
        return {"success": share_interval(success[0]), "return": interval(gained[0]), **of_runs}
    return {"success": runs_interval(success), "return": runs_interval(gained), **of_runs}


def train_in_learned_world(config: Config, store: EpisodeStore, world: WorldModel) -> None:
    """Trains the runs in the dream that have not ended yet, all from the same scenes."""
    from mosaic_gym.evaluation.suites.transfer import policies as known
    from mosaic_gym.evaluation.suites.transfer.tasks import generated_goals, remembered
    from mosaic_gym.worlds.mosaic import MosaicWorld

    weights = [tested_policy(config, name) for name in names_of("dream", config)]
    missing = {run: path.parent for run, path in enumerate(weights) if not path.is_file()}
    if not missing:
        return
    places = remembered(store, world, config.places)
    task = generated_goals(MosaicWorld(world), places, config.scenes, config.out / "goals.safetensors", config.seed)
    for run, folder in missing.items():
        dream = open_learned_world(config, task)
        known.train(known.make_policy(dream, config.rollout, config.seed + run), config.steps, folder, config.policies)
        dream.close()


def train_in_simulator(config: Config, settings: WorldSettings, steps: int) -> Path:
    """The policy trained in the engine; trained first, if it has not been."""
    from mosaic_gym.evaluation.suites.transfer import policies as known

    weights = tested_policy(config, "engine")
    if not weights.is_file():
        engines = open_simulator(settings, members=4)
        # As many samples between updates as the dream's many members give.
        policy = known.make_policy(engines, config.rollout * MEMBERS // 4, config.seed)
        known.train(policy, steps, weights.parent, config.policies)
        engines.close()
    return weights


def open_learned_world(config: Config, task: Task) -> VecEnv:
    """A task in the dream, many members at once."""
    from stable_baselines3.common.vec_env import VecTransposeImage

    from mosaic_gym.envs.sb3 import make_sb3
    from mosaic_gym.evaluation.suites.transfer.policies import WayFromStart

    faces = {"observation": "dict", "max_episode_steps": EPISODE_STEPS, "checkpoint": config.checkpoint}
    return WayFromStart(VecTransposeImage(make_sb3(MEMBERS, task=task, **faces)))


def rank(
    config: Config, places: Mapping[str, Callable[[], VecEnv]], policies: Mapping[str, Callable[[int], Choose]]
) -> dict[str, Any]:
    """Mean returns of policies in dream and engine, over the same episodes, and how far their order agrees."""
    from mosaic_gym.evaluation.metrics import agreement

    seeds = range(FIRST_RANK_SEED, FIRST_RANK_SEED + config.rank_episodes)
    returns = {}
    for place, open_env in places.items():
        opened = cache(open_env)  # it may not be needed, and is dear
        told = [
            walked(
                config.out / f"rank_{place}_{name}.json", opened, choose, seeds, config.seed, f"{name} in the {place}"
            )
            for name, choose in policies.items()
        ]
        if opened.cache_info().currsize:
            opened().close()
        returns[place] = np.array([[one["return"] for one in each] for each in told])
    told = agreement(returns["dream"], returns["engine"], config.seed)
    said = {name: "none" if value is None else f"{value:.2f}" for name, value in told.items()}
    means = np.stack([returns[place].mean(1) for place in places])
    for name, (there, here) in zip(policies, means.T, strict=True):
        print(f"policy {name:<10} mean return {there:6.2f} in the dream, {here:6.2f} in the engine")
    print(
        f"Spearman rank correlation of {len(policies)} policies' returns, dream against engine: {said['spearman']} "
        f"[{said['low']}, {said['high']}] (goal >= 0.8)"
    )
    print(
        f"of half the episodes against the other half: dream against engine {said['halves']}, "
        f"engine against itself {said['engine_halves']}"
    )
    pairs = {name: pair.tolist() for name, pair in zip(policies, means.T, strict=True)}
    return {"returns_dream_engine": pairs, **told}


def plan(config: Config, model: WorldModel) -> dict[str, dict[str, dict[str, float]]]:
    """Success and return of CEM in the engine, by what the planner remembers; every episode is kept as it ends."""
    import gymnasium as gym
    from tqdm import tqdm

    import mosaic_gym  # noqa: F401, registers the ids
    from mosaic_gym.evaluation.metrics import interval, share_interval
    from mosaic_gym.planning import MEMORIES, Planner
    from mosaic_gym.worlds.mosaic import MosaicWorld

    dream = MosaicWorld(model)
    faces = {"task": "return", "observation": "dict", "action_space": "continuous"}
    faces |= {"scenario": model.settings.scenario, "resolution": [dream.height, dream.width]}
    opened = cache(lambda: gym.make("MosaicWorldReal-v0", max_episode_steps=PLAN_STEPS, **faces))
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10 * config.plan_episodes, 10)
    found = {}
    for memory in MEMORIES:
        path = config.out / f"plan_{memory}.json"
        told = kept(path, list)
        for seed in tqdm(seeds[len(told) :], desc=f"planner, memory {memory}", unit="episode"):
            gained, home = Planner(dream, memory=memory, seed=seed).play(opened(), seed)
            told.append({"return": gained, "success": float(home)})
            path.write_text(json.dumps(told, indent=1) + "\n")
        successes, returns = ([one[key] for one in told[: len(seeds)]] for key in ("success", "return"))
        found[memory] = {"success": share_interval(successes), "return": interval(returns)}
        figure = found[memory]["success"]
        print(
            f"planner, memory {memory:<5} comes home in the engine {figure['value']:.3f} "
            f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        )
    if opened.cache_info().currsize:
        opened().close()
    return found
