"""The planner (CEM over forks of the learned world) on the return task in the simulator, by its memory."""

from __future__ import annotations

import json
from functools import cache

import gymnasium as gym
from tqdm import tqdm

import mosaic_gym  # noqa: F401, registers the ids
from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval, wilson_interval
from mosaic_gym.evaluation.suites.transfer.config import FIRST_TEST_SEED, Config, results_path
from mosaic_gym.evaluation.suites.transfer.episodes import load_or_make
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.planning import MEMORIES, Planner
from mosaic_gym.worlds.mosaic import MosaicWorld

PLAN_STEPS = 24
"""Time limit of a planner's episode, steps."""


def plan(config: Config, model: WorldModel) -> dict[str, dict[str, dict[str, float]]]:
    """Success and return of the planner by its memory. Every episode is written to a file when it ends."""
    learned = MosaicWorld(model)
    arguments = {"task": "return", "observation": "dict", "action_space": "continuous"}
    arguments |= {"scenario": model.settings.scenario, "resolution": [learned.height, learned.width]}
    open_once = cache(lambda: gym.make("MosaicWorldReal-v0", max_episode_steps=PLAN_STEPS, **arguments))
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10 * config.plan_episodes, 10)
    figures = {}
    for memory in MEMORIES:
        path = results_path(config, f"plan_{memory}.json")
        results = load_or_make(path, list)
        for seed in tqdm(seeds[len(results) :], desc=f"planner, memory {memory}", unit="episode"):
            total, success = Planner(learned, memory=memory, seed=seed).play(open_once(), seed)
            results.append({"return": total, "success": float(success)})
            path.write_text(json.dumps(results, indent=1) + "\n")
        successes, returns = ([result[key] for result in results[: len(seeds)]] for key in ("success", "return"))
        figures[memory] = {"success": wilson_interval(successes), "return": bootstrap_interval(returns)}
        success = figures[memory]["success"]
        print(
            f"planner, memory {memory:<5} comes home in the simulator {success['value']:.3f} "
            f"[{success['low']:.3f}, {success['high']:.3f}]"
        )
    if open_once.cache_info().currsize:
        open_once().close()
    return figures
