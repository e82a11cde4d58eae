"""The window in which people play the world: walk, rewind, fork, edit memory, and see where each pixel comes from."""

from mosaic_gym.play.command import PlayConfig, play

__all__ = ["PlayConfig", "play"]
