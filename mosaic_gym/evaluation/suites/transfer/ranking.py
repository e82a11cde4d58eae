"""Whether returns in the learned world rank policies as returns in the simulator do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.evaluation.metrics.agreement import rank_agreement
from mosaic_gym.evaluation.suites.transfer.config import Config, results_path
from mosaic_gym.evaluation.suites.transfer.environments import open_learned_world, open_simulator
from mosaic_gym.evaluation.suites.transfer.episodes import play_missing
from mosaic_gym.evaluation.suites.transfer.policies import SeededPolicy, constant_policy, idling_policy
from mosaic_gym.evaluation.suites.transfer.tasks import RecordedGoalTask, load_recordings, recorded_goal_task
from mosaic_gym.model.checkpoints import WorldModel

FIRST_RANK_SEED = 7
"""First seed of the episodes at held-out recorded places; the following ones are consecutive, and the same in the
learned world and in the simulator."""
CONSTANT = {"turning": "turn_right", "backing": "backward", "sidling": "right", "circling": "forward_turn_right"}
"""Weak policies that are ranked besides the variants, by the action they repeat."""
IDLE_SHARES = (0.5, 0.75, 0.9)
"""Further ones: the scripted policy with no-ops on these shares of its steps."""


def policies_to_rank(policies: Mapping[str, SeededPolicy]) -> dict[str, SeededPolicy]:
    """The given policies and weaker ones.

    The checkpoints of one training are too similar to have an order, so policies from bad to good are added.
    """
    constant = {name: partial(constant_policy, action) for name, action in CONSTANT.items()}
    idling = {f"idle_{share:.0%}": partial(idling_policy, share) for share in IDLE_SHARES}
    return {**constant, **idling, **policies}


def rank(config: Config, model: WorldModel, policies: Mapping[str, SeededPolicy]) -> dict[str, Any]:
    """Mean returns of policies in the learned world and in the simulator, over the same episodes, and their agreement.

    Returns:
        `returns_learned_simulator`: the two mean returns of each policy. The rest is from `rank_agreement`.
    """
    store = EpisodeStore(config.data, "heldout")
    environments = {
        "learned": (
            "learned world",
            lambda: open_learned_world(config.checkpoint, RecordedGoalTask(load_recordings(store, model))),
        ),
        "simulator": ("simulator", lambda: open_simulator(model.settings, recorded_goal_task(store))),
    }
    seeds = range(FIRST_RANK_SEED, FIRST_RANK_SEED + config.rank_episodes)
    returns = {}
    for kind, (label, open_env) in environments.items():
        open_once = cache(open_env)  # opening is slow, and unnecessary if all results exist
        results = [
            play_missing(
                results_path(config, f"rank_{kind}_{name}.json"),
                open_once, policy, seeds, config.seed, f"{name} in the {label}",
            )
            for name, policy in policies.items()
        ]  # fmt: skip
        if open_once.cache_info().currsize:
            open_once().close()
        returns[kind] = np.array([[result["return"] for result in episodes] for episodes in results])
    agreement = rank_agreement(returns["learned"], returns["simulator"], config.seed)
    means = np.stack([returns[kind].mean(1) for kind in environments], axis=1)
    pairs = {name: pair.tolist() for name, pair in zip(policies, means, strict=True)}
    _print_ranking(pairs, agreement)
    return {"returns_learned_simulator": pairs, **agreement}


def _print_ranking(pairs: Mapping[str, list[float]], agreement: Mapping[str, float | None]) -> None:
    for name, (learned, simulator) in pairs.items():
        print(f"policy {name:<11} mean return {learned:6.2f} in the learned world, {simulator:6.2f} in the simulator")
    texts = {name: "none" if value is None else f"{value:.2f}" for name, value in agreement.items()}
    print(
        f"Spearman rank correlation of {len(pairs)} policies' returns, learned world against simulator: "
        f"{texts['spearman']} [{texts['low']}, {texts['high']}] (goal >= 0.8)"
    )
    print(
        f"one half of the episodes against the other half: learned world against simulator {texts['halves']}, "
        f"simulator against itself {texts['simulator_halves']}"
    )
