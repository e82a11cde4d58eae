"""The transfer benchmark: does a policy that was trained in the learned world work in the simulator?

PPO is trained on the goal task in the learned world alone. Every episode starts at a recorded place with the recording
in memory, and its goal is where a scripted walk, generated as well, ended. The policy is then tested in the simulator
beside four others: random actions, walking straight ahead, a scripted walker, and PPO trained in the simulator for as
many frames as the recording has.

The benchmark also ranks policies from bad to good by their returns in the learned world and in the simulator, over the
same episodes at held-out recorded places; goals are places that the recorded walk came to later. Last, a planner
(CEM over forks of the learned world) walks home in the simulator after a scripted walk there: with its memory, without
frames, and without frames and places.

All results are written to a folder as soon as they exist. A second run continues from them; with more episodes, it adds
the missing ones.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from mosaic_gym.evaluation.suites.transfer.config import (
    EARLIER_OPTIONS,
    FIRST_TEST_SEED,
    RECIPE,
    RULES,
    Config,
    final_policy,
    results_path,
    run_names,
)

if TYPE_CHECKING:
    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.evaluation.suites.transfer.policies import SeededPolicy
    from mosaic_gym.model.checkpoints import WorldModel


def evaluate(config: Config) -> dict[str, Any]:
    """Trains missing policies, tests them, prints the table, and writes `transfer.json` and `transfer.png`.

    Raises:
        ValueError: a checkpoint without an atlas, or a folder with results of another checkpoint, recording or choice
            of options.
        FileNotFoundError: the recording does not exist.
    """
    from mosaic_gym.data.episodes import EpisodeStore
    from mosaic_gym.evaluation.reports.transfer_plot import draw
    from mosaic_gym.evaluation.suites.transfer.planner import plan
    from mosaic_gym.evaluation.suites.transfer.ranking import policies_to_rank, rank
    from mosaic_gym.model.checkpoints import WorldModel

    store = EpisodeStore(config.data, "train")
    model = WorldModel.from_pretrained(config.checkpoint)
    if model.atlas is None:
        raise ValueError(
            f"{config.checkpoint} has no atlas, which locates the recording's places; train one (mosaic-gym train "
            "atlas), and a world with it"
        )
    _check_folder(config, model.fingerprint, store.fingerprint)

    results: dict[str, Any] = {}
    results["variants"], variants = _test_variants(config, store, model)
    results["config"] = {**vars(config), "data": str(config.data), "out": str(config.out)}
    learned, chance = (results["variants"][name]["success"]["value"] for name in ("learned", "random"))
    results["success_over_random"] = learned / chance if chance else None
    ratio = f"{learned / chance:.2f} x" if chance else "random actions never succeeded"
    print(f"trained in the learned world only, over random: {ratio} (goal >= 2 x, intervals apart)")
    if config.rank_episodes:
        policies = {
            run: policy
            for variant, runs in variants.items()
            for run, policy in zip(run_names(variant, config), runs, strict=True)
        }
        results["ranking"] = rank(config, model, policies_to_rank(policies))
    if config.plan_episodes:
        results["planner"] = plan(config, model)
    (config.out / "transfer.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(config.out / "transfer.png", results)
    return results


def _check_folder(config: Config, checkpoint: str, recording: str) -> None:
    """Creates the folder with a description of its origin, or compares that description.

    Args:
        checkpoint: its fingerprint.
        recording: its fingerprint.

    Raises:
        ValueError: the folder holds results of something else.
    """
    from mosaic_gym.evaluation.suites.transfer.episodes import load_or_make

    config.out.mkdir(parents=True, exist_ok=True)
    recipe = {name: str(getattr(config, name)) for name in RECIPE}
    recipe |= {"recording": recording, "rules": str(RULES)}
    metadata = load_or_make(config.out / "checkpoint.json", lambda: {"fingerprint": checkpoint, **recipe})
    metadata = {EARLIER_OPTIONS.get(name, name): value for name, value in metadata.items()}
    if metadata["fingerprint"] != checkpoint:
        raise ValueError(f"{config.out} holds results of another checkpoint; give another --out, or empty it")
    differing = sorted(name for name in recipe if metadata.get(name) != recipe[name])
    if differing:
        previous = ", ".join(f"{name}={metadata.get(name)}" for name in differing)
        raise ValueError(f"{config.out} holds results of {previous}; give the same options, or another --out")


def _test_variants(
    config: Config, store: EpisodeStore, model: WorldModel
) -> tuple[dict[str, Any], dict[str, list[SeededPolicy]]]:
    """Trains missing policies and tests all variants in the simulator.

    Returns:
        Figures by variant, from `summarize`, and the policies of each variant's runs.
    """
    from mosaic_gym.evaluation.suites.transfer import policies as known
    from mosaic_gym.evaluation.suites.transfer.environments import open_simulator
    from mosaic_gym.evaluation.suites.transfer.episodes import play_missing, summarize
    from mosaic_gym.evaluation.suites.transfer.ppo import make_ppo
    from mosaic_gym.evaluation.suites.transfer.training import train_in_learned_world, train_in_simulator

    simulator = open_simulator(model.settings)
    ppo = make_ppo(simulator, config.rollout, config.seed)
    train_in_learned_world(config, store, model)
    weights = [final_policy(config, run) for run in run_names("learned", config)]
    variants: dict[str, list[SeededPolicy]] = {
        "random": [known.random_policy],
        "ahead": [partial(known.constant_policy, "forward")],
        "scripted": [known.scripted_policy],
        "learned": [partial(known.trained_policy, ppo, path) for path in weights],
    }
    recorded_steps = sum(len(store.load(index)) for index in range(len(store)))
    simulator_steps = recorded_steps if config.simulator_steps is None else config.simulator_steps
    if simulator_steps:
        trained = train_in_simulator(config, model.settings, simulator_steps)
        variants["simulator"] = [partial(known.trained_policy, ppo, trained)]

    figures = {}
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 10 * config.episodes, 10)
    for variant, runs in variants.items():
        results = [
            play_missing(
                results_path(config, f"simulator_{run}.json"),
                lambda: simulator, policy, seeds, config.seed, f"{run} in the simulator",
            )
            for run, policy in zip(run_names(variant, config), runs, strict=True)
        ]  # fmt: skip
        figures[variant] = summarize(results)
        success = figures[variant]["success"]
        line = f"{variant:<9} success in the simulator {success['value']:.3f} [{success['low']:.3f}, "
        by_run = ", ".join(f"{value:.3f}" for value in figures[variant]["success_of_runs"])
        print(f"{line}{success['high']:.3f}]" + (f", by run {by_run}" if len(runs) > 1 else ""))
    simulator.close()
    return figures, variants
