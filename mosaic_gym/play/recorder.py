"""A recording of play: an MP4 that stays playable when it is cut off, and the episode beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from mosaic_gym.data.episodes import write_episode
from mosaic_gym.envs.mosaic_env import FRAMES_PER_SECOND
from mosaic_gym.worlds.protocol import View

FRAGMENTS = ["-g", "16", "-tune", "zerolatency", "-flush_packets", "1",
             "-movflags", "frag_keyframe+empty_moov+default_base_moof"]  # fmt: skip
"""The file is written in fragments of 16 frames, each complete, as soon as they are encoded."""
SCALE = 4
"""Enlargement of the video's frames."""


def next_number(names: Iterable[str]) -> int:
    """The number after the largest of names that are numbers; 0 if none is."""
    return max((int(name) for name in names if name.isdigit()), default=-1) + 1


class Recorder:
    """Writes frames as they come, and the episode when it is closed.

    Args:
        folder: for `NUMBER.mp4` and, in our episode format, `episodes/`; numbers go on after those that are there.
        scenario: of the episode's metadata.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, scenario: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files = [*folder.glob("*.mp4"), *(folder / "episodes").glob("*/*")]
        self.number = next_number(file.stem for file in files)
        self.video = folder / f"{self.number:04d}.mp4"
        self._folder, self.scenario = folder, scenario
        self._writer: Any = imageio.get_writer(
            self.video, fps=FRAMES_PER_SECOND, codec="libx264", quality=8, macro_block_size=2, output_params=FRAGMENTS
        )
        self._views: list[View] = []
        self._actions: list[np.ndarray] = []
        self._captions: list[str] = []

    @property
    def steps(self) -> int:
        """Steps so far."""
        return len(self._views)

    def add(self, view: View, action: np.ndarray, prompt: str) -> None:
        """Adds a step; OSError if the disk is full."""
        for frame in view.frames:
            self._writer.append_data(frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1))
        self._views.append(view)
        self._actions.append(np.zeros(3) if not self._actions else np.asarray(action))
        self._captions.append(prompt)

    def close(self) -> str:
        """Ends the video, and writes the episode: frames, depth, cameras, actions, rewards and prompts."""
        self._writer.close()
        if not self._views:
            self.video.unlink(missing_ok=True)
            return "nothing was recorded"
        episode = write_episode(
            self._folder / "episodes", self.number, self.scenario, [_Recorded(view) for view in self._views],
            np.stack(self._actions), self._captions,
        )  # fmt: skip
        return f"recorded {len(self._views)} steps: {self.video}, {episode}"

    def end_after(self, error: Exception) -> str:
        """Closes a recording that cannot go on; returns a line that says why."""
        try:
            self.close()
        except (OSError, RuntimeError) as second:
            return f"the recording has ended, and its episode is lost: {error}; {second}"
        return f"the recording has ended: {error}"


class _Recorded:
    """A view with a depth for each frame; a learned world has the last one's, which stands for all four."""

    def __init__(self, view: View) -> None:
        self.frames, self.world_from_camera, self.image_from_camera = (
            view.frames, view.world_from_camera, view.image_from_camera,
        )  # fmt: skip
        self.labels, self.reward, self.terminated = view.labels, view.reward, view.terminated
        self.all_depth_m = np.repeat(view.depth_m[None], len(view.frames), axis=0)
        if view.all_depth_m is not None:
            self.all_depth_m = view.all_depth_m
