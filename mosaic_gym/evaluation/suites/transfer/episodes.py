"""Episodes of a policy: played by seed, kept in a file, and summarized with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval, bootstrap_runs_interval, wilson_interval

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from mosaic_gym.evaluation.suites.transfer.policies import Policy, SeededPolicy

EpisodeResult = dict[str, float]
"""`return`, and `success`, 0 or 1."""


def play(env: VecEnv, policy: Policy, seeds: Sequence[int], label: str) -> list[EpisodeResult]:
    """Results of one episode for each seed; as many are played at once as the environment has members.

    Args:
        seeds: consecutive ones, unless the environment has one member.
        label: of the progress bar.
    """
    results: list[EpisodeResult] = []
    with tqdm(total=len(seeds), desc=label, unit="episode", mininterval=2.0) as bar:
        while len(results) < len(seeds):
            env.seed(seeds[len(results)])  # the members take consecutive seeds
            observations, totals = env.reset(), np.zeros(env.num_envs)
            ends: list[EpisodeResult | None] = [None] * env.num_envs
            while None in ends:
                observations, rewards, dones, infos = env.step(policy(observations))
                totals += rewards
                for i in np.flatnonzero(dones):
                    success = float(infos[i].get("is_success", False))
                    ends[i] = ends[i] or {"return": float(totals[i]), "success": success}
            results += ends
            bar.update(len(ends))
    return results[: len(seeds)]


def load_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file, which is made and written first if the file does not exist."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def play_missing(
    path: Path, open_env: Callable[[], VecEnv], policy: SeededPolicy, seeds: Sequence[int], seed: int, label: str
) -> list[EpisodeResult]:
    """Results of `play` from a file. Episodes that the file lacks are played first and added to it.

    Added episodes use another policy seed than the ones before them, so that they do not repeat their random choices.
    """
    results = load_or_make(path, list)
    if len(results) < len(seeds):
        results += play(open_env(), policy(seed + len(results)), seeds[len(results) :], label)
        path.write_text(json.dumps(results, indent=1) + "\n")
    return results[: len(seeds)]


def summarize(runs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Success and return of a variant with 95 % intervals.

    Args:
        runs: results of each run, on the same episodes.

    Returns:
        `success`, `return`: value, low, high; over the episodes of one run, or over runs and episodes of several.
        `success_of_runs`: the success of each run.
    """
    successes, returns = (np.array([[result[key] for result in run] for run in runs]) for key in ("success", "return"))
    of_runs = {"success_of_runs": successes.mean(1).tolist()}
    if len(runs) == 1:
        return {"success": wilson_interval(successes[0]), "return": bootstrap_interval(returns[0]), **of_runs}
    return {"success": bootstrap_runs_interval(successes), "return": bootstrap_runs_interval(returns), **of_runs}
