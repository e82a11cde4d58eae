"""Training of the policies that are tested: in the learned world, and in the simulator."""

from __future__ import annotations

from pathlib import Path

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.evaluation.suites.transfer import environments
from mosaic_gym.evaluation.suites.transfer.config import Config, final_policy, run_names
from mosaic_gym.evaluation.suites.transfer.ppo import make_ppo, train
from mosaic_gym.evaluation.suites.transfer.tasks import fixed_goal_task, load_recordings
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.worlds.mosaic import MosaicWorld

SIMULATORS = 4
"""Simulators that run at once."""


def train_in_learned_world(config: Config, store: EpisodeStore, model: WorldModel) -> None:
    """Trains the runs in the learned world that are not finished, all with the same starts and goals."""
    weights = [final_policy(config, run) for run in run_names("learned", config)]
    unfinished = {run: path.parent for run, path in enumerate(weights) if not path.is_file()}
    if not unfinished:
        return
    recordings = load_recordings(store, model, config.places)
    file = config.out / "goals.safetensors"
    task = fixed_goal_task(MosaicWorld(model), recordings, config.goals, file, config.seed)
    for run, folder in unfinished.items():
        env = environments.open_learned_world(config.checkpoint, task)
        train(make_ppo(env, config.rollout, config.seed + run), config.steps, folder, config.policies)
        env.close()


def train_in_simulator(config: Config, settings: WorldSettings, steps: int) -> Path:
    """The file of the policy trained in the simulator, which is trained first if it does not exist."""
    weights = final_policy(config, "simulator")
    if not weights.is_file():
        env = environments.open_simulator(settings, members=SIMULATORS)
        # As many samples between two updates as the members of the learned world give.
        rollout = config.rollout * environments.MEMBERS // SIMULATORS
        train(make_ppo(env, rollout, config.seed), steps, weights.parent, config.policies)
        env.close()
    return weights
