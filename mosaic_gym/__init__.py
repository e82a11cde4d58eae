"""Mosaic Gym: a video diffusion model with a spatial memory, as a Gymnasium environment.

Importing this package registers `MosaicWorld-v0` (the dream) and `MosaicWorldReal-v0` (the
engine it was trained on). Networks and engines load when an environment is made.
"""

from gymnasium.envs.registration import register as _register

from mosaic_gym.data.explore import steer_towards_depth
from mosaic_gym.envs.tasks import FixedStarts
from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP, Control, Pose, pose_at
from mosaic_gym.imagination import imagine
from mosaic_gym.planning import Planner, Search
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.protocol import StaleStateError, Start, State, View, World
from mosaic_gym.worlds.registry import WORLDS, make_world

__all__ = [
    "ACTIONS",
    "Control",
    "FRAMES_PER_STEP",
    "FixedStarts",
    "Planner",
    "Pose",
    "Search",
    "StaleStateError",
    "Start",
    "State",
    "View",
    "WORLDS",
    "World",
    "check_world",
    "imagine",
    "make_sb3",
    "make_world",
    "pose_at",
    "steer_towards_depth",
]


def make_sb3(num_envs: int, **kwargs):
    """`num_envs` members of the dream as a Stable-Baselines3 VecEnv; see `mosaic_gym.envs.sb3.make_sb3`."""
    try:  # needs the extra `rl`, which the door does without
        from mosaic_gym.envs.sb3 import make_sb3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"make_sb3 needs Stable-Baselines3 ({error}): pip install mosaic-gym[rl]") from error

    return make_sb3(num_envs, **kwargs)


_register(
    "MosaicWorld-v0",
    entry_point="mosaic_gym.envs.mosaic_env:make_learned_env",
    vector_entry_point="mosaic_gym.envs.vector_env:make_learned_vector_env",
    max_episode_steps=256,
)
_register("MosaicWorldReal-v0", entry_point="mosaic_gym.envs.mosaic_env:make_simulator_env", max_episode_steps=256)
