"""What explains the present of a session: the overlay of every view, the panel at the side, the line of status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mosaic_gym.play.overlays import OVERLAYS as PICTURES
from mosaic_gym.play.overlays import curves, memory_from_above, overlay_picture
from mosaic_gym.play.screen import PANEL_PX
from mosaic_gym.play.session import Session

OVERLAYS = ("none", *PICTURES)


def overlays_of(session: Session) -> tuple[str, ...]:
    """Names of the overlays that there are now: the simulator has no memory."""
    return ("none", "depth") if session.in_simulator else OVERLAYS


def overlay_pictures(session: Session, overlay: str) -> list[np.ndarray]:
    """The overlay of every view, uint8 `[H, W, 3]`; none for `none`, for a simulator beside the futures, and for what
    the simulator does not have while it is played.

    Raises:
        RuntimeError: memory holds no pictures.
    """
    if overlay == "none" or overlay not in overlays_of(session):
        return []
    if overlay == "depth":
        return [overlay_picture(session.env.world, None, view, overlay) for view in session.views]
    _ = session.memory  # raises without one
    pictures = []
    for future in session.futures:
        view, before = future.present.episode.view, future.before
        state = None if before is None else before.episode.state
        pictures.append(overlay_picture(session.env.world, state, view, overlay))
    return pictures


def panel_pictures(session: Session, shows_map: bool, series: Mapping[str, Sequence[float]] | None) -> list[np.ndarray]:
    """Memory from above, if it is shown, and the curves of some series, if there are any; uint8 `[H, W, 3]`."""
    pictures = []
    if shows_map:
        episodes, memory = [moment.episode for moment in session.current.past], None
        if session.in_simulator:
            episodes = [session.simulator.episode]
        else:
            memory = getattr(episodes[-1].state, "memory", None)
        cameras = np.stack([episode.view.world_from_camera[-1] for episode in episodes])
        heading_rad = float(np.arctan2(cameras[-1, 0, 2], cameras[-1, 2, 2]))
        pictures.append(memory_from_above(memory, cameras[:, [0, 2], 3], heading_rad, PANEL_PX))
    if series is not None:
        pictures.append(curves(series, PANEL_PX))
    return pictures


def status_line(session: Session, overlay: str, paused: bool, rate: float | None, recording: int | None) -> str:
    """The first line of the strip.

    Args:
        rate: steps a second; None before the first step. recording: its number; None for none.
    """
    if session.in_simulator:
        parts = ["simulator"]
    else:
        episode = session.current.present.episode
        parts = [f"step {episode.steps}", f"retrieved {episode.view.coverage:.0%}"]
        parts += [f"keyframes {episode.view.keyframes}"]
        parts += ["the rest from the atlas"] if episode.view.on_map else []
        parts += ["memory off"] if session.memory_is_off else []
    parts += ["ready"] if rate is None else [f"{rate:.0f} steps/s"]
    parts += [overlay] if overlay != "none" else []
    parts += ["paused"] if paused else []
    parts += ["policy"] if session.policy_steers else []
    parts += [] if recording is None else [f"recording {recording}"]
    return "   ".join(parts)
