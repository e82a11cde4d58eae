"""Mosaic Gym: a video diffusion model with a spatial memory, as a Gymnasium environment.

Importing this package registers two environments. `MosaicWorld-v0` is the learned world; `MosaicWorldReal-v0` is the
simulator that it was trained on. Networks and the simulator load when an environment is made.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register as _register

from mosaic_gym.deprecation import warn_renamed as _warn_renamed
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.snapshot import Snapshot
from mosaic_gym.envs.tasks import (
    ExploreTask,
    FixedStarts,
    GoalTask,
    ReturnTask,
    SimulatorTask,
    StartAndGoal,
    Task,
    TaskStep,
)
from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP, Control, Pose, pose_at
from mosaic_gym.geometry.conventions import (
    pose_from_camera_from_world,
    pose_from_colmap,
    pose_from_opengl,
    pose_from_ros,
)
from mosaic_gym.geometry.steering import DepthWalker, steer_towards_depth
from mosaic_gym.imagination import imagine
from mosaic_gym.planning import Planner, Search
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.protocol import StaleStateError, Start, State, View, World
from mosaic_gym.worlds.registry import WORLDS, make_world

if TYPE_CHECKING:
    from mosaic_gym.data.episodes import EpisodeStore, write_episode
    from mosaic_gym.memory import editing
    from mosaic_gym.memory.mosaic import MosaicMemory
    from mosaic_gym.model.wan.adapters import fuse_adapters
    from mosaic_gym.model.wan.options import WanOptions
    from mosaic_gym.play.overlay_wrapper import OverlayRendering
    from mosaic_gym.worlds.doom import DoomWorld
    from mosaic_gym.worlds.maps.rooms import MapOptions
    from mosaic_gym.worlds.mosaic import MosaicWorld
    from mosaic_gym.worlds.room_explorer import RoomExplorer

__all__ = [
    "ACTIONS",
    "Control",
    "DepthWalker",
    "DoomWorld",
    "EpisodeStore",
    "ExploreTask",
    "FRAMES_PER_STEP",
    "FixedStarts",
    "GoalTask",
    "MapOptions",
    "MosaicMemory",
    "MosaicWorld",
    "OverlayRendering",
    "Planner",
    "Pose",
    "ReturnTask",
    "RoomExplorer",
    "Rules",
    "Search",
    "SimulatorTask",
    "Snapshot",
    "StaleStateError",
    "Start",
    "StartAndGoal",
    "State",
    "Task",
    "TaskStep",
    "View",
    "WORLDS",
    "WanOptions",
    "World",
    "check_world",
    "editing",
    "fuse_adapters",
    "imagine",
    "make_sb3",
    "make_world",
    "pose_at",
    "pose_from_camera_from_world",
    "pose_from_colmap",
    "pose_from_opengl",
    "pose_from_ros",
    "steer_towards_depth",
    "write_episode",
]

_LAZY = {
    "DoomWorld": "mosaic_gym.worlds.doom",
    "EpisodeStore": "mosaic_gym.data.episodes",
    "MapOptions": "mosaic_gym.worlds.maps.rooms",
    "MosaicMemory": "mosaic_gym.memory.mosaic",
    "MosaicWorld": "mosaic_gym.worlds.mosaic",
    "OverlayRendering": "mosaic_gym.play.overlay_wrapper",
    "RoomExplorer": "mosaic_gym.worlds.room_explorer",
    "WanOptions": "mosaic_gym.model.wan.options",
    "fuse_adapters": "mosaic_gym.model.wan.adapters",
    "write_episode": "mosaic_gym.data.episodes",
}
"""Names whose modules import torch or the simulator, which takes time: each is imported when it is first used."""
_LAZY_MODULES = {"editing": "mosaic_gym.memory.editing"}
"""The same for modules."""
_RENAMED = {"FixedScenes": "FixedStarts", "thrust_towards_depth": "steer_towards_depth"}  # old spelling


def make_sb3(num_envs: int, **kwargs: Any) -> Any:
    """`num_envs` learned worlds as one Stable-Baselines3 VecEnv; see `mosaic_gym.envs.sb3.make_sb3`."""
    try:  # needs the extra `rl`, and the package without it
        from mosaic_gym.envs.sb3 import make_sb3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"make_sb3 needs Stable-Baselines3 ({error}): pip install mosaic-gym[rl]") from error

    return make_sb3(num_envs, **kwargs)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        _warn_renamed(f"mosaic_gym.{name}", f"mosaic_gym.{_RENAMED[name]}")
        return globals()[_RENAMED[name]]
    if name in _LAZY_MODULES:
        return _import_module(_LAZY_MODULES[name])
    if name in _LAZY:
        return getattr(_import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LAZY_MODULES})


_register(
    "MosaicWorld-v0",
    entry_point="mosaic_gym.envs.mosaic_env:make_learned_env",
    vector_entry_point="mosaic_gym.envs.vector_env:make_learned_vector_env",
    max_episode_steps=256,
)
_register(
    "MosaicWorldReal-v0",
    entry_point="mosaic_gym.envs.mosaic_env:make_simulator_env",
    vector_entry_point="mosaic_gym.envs.vector_env:make_simulator_vector_env",
    max_episode_steps=256,
)
