"""`mosaic-gym serve`: the world in a browser, by viser: view, keys, sliders, memory in 3D with transform handles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from mosaic_gym.play.app import REFUSALS
from mosaic_gym.play.explain import OVERLAYS, overlay_pictures, status_line
from mosaic_gym.play.session import GUIDANCE_STEP, Session
from mosaic_gym.validation import Whole, option, validate

ACTIONS = {
    "forward": ("W", (1.0, 0.0, 0.0)),
    "back": ("S", (-1.0, 0.0, 0.0)),
    "step left": ("A", (0.0, -1.0, 0.0)),
    "step right": ("D", (0.0, 1.0, 0.0)),
    "turn left": ("arrowleft", (0.0, 0.0, -1.0)),
    "turn right": ("arrowright", (0.0, 0.0, 1.0)),
}
"""Buttons that make a step: their key and their action (forward, right, turn right)."""
ENLARGEMENT = 6
MOST_POINTS = 60_000
"""Points of memory in 3D; of more, the latest are drawn."""


@dataclass(frozen=True)
class ServeConfig:
    """Show the learned world in a browser."""

    checkpoint: str = "doom-tiny"
    """Shipped checkpoint by name, or a folder."""
    device: str = "cpu"
    """Device that the networks run on."""
    prompt: str | None = None
    """Text that conditions the learned world."""
    seed: int = 0
    """Seed of the first episode."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network of this machine."""
    port: Annotated[int, Whole(0, 65535)] = 8080
    """Port to listen on."""

    def __post_init__(self) -> None:
        validate(self, option)


class BrowserView:
    """The controls and pictures of a session in a viser server.

    Args:
        session: what is played.
        server: a `viser.ViserServer`.
    """

    def __init__(self, session: Session, server: Any) -> None:
        self.session, self.server = session, server
        self.overlay = "none"
        self._lock = threading.Lock()  # viser calls back from several threads
        self._rate: float | None = None
        gui, height, width = server.gui, *session.views[0].frames.shape[1:3]
        self.image = gui.add_image(self._picture(), label="view", format="png")
        self.message = gui.add_markdown("")
        for name, (key, action) in ACTIONS.items():
            gui.add_button(f"{name} ({key.removeprefix('arrow')})").on_click(self._step(action))
            gui.add_command(name, hotkey=key).on_trigger(self._step(action))
        with gui.add_folder("time"):
            self._button("back", lambda: session.move_in_time(-1))
            self._button("forward again", lambda: session.move_in_time(1))
            self._button("fork, or end the fork", session.fork)
            self._button("steer another future", session.next_steering)
            self._button("next episode", session.restart)
        with gui.add_folder("switches"):
            self.prompt = gui.add_text("prompt", session.prompt)
            self._button("take the prompt", lambda: session.set_prompt(self.prompt.value))
            self._button("memory on or off", session.switch_memory)
            self._button("more guidance", lambda: session.change_guidance(GUIDANCE_STEP))
            self._button("less guidance", lambda: session.change_guidance(-GUIDANCE_STEP))
            self.overlays = gui.add_dropdown("overlay", OVERLAYS)
            self.overlays.on_update(lambda _: self.do(self._set_overlay))
        with gui.add_folder("memory"):
            names = (("top", height, height // 4), ("left", width, width // 4), ("bottom", height, 3 * height // 4),
                     ("right", width, 3 * width // 4))  # fmt: skip
            self.box = [gui.add_slider(name, 0, most, 1, start) for name, most, start in names]
            for slider in self.box:
                slider.on_update(lambda _: self._draw_view())
            self._button("select", self._select)
            self._button("move to the handles", self._move)
            for name in ("remove", "duplicate", "enlarge", "turn"):
                self._button(name, lambda name=name: session.edit(name))
            self._button("undo", session.undo)
            self._button("redo", session.redo)
        self.handles: Any = None
        self._centre = np.zeros(3)
        server.scene.set_up_direction("-y")
        self.show()

    def do(self, command: Callable[[], str]) -> None:
        """Runs a command of the session, and shows its line, or what was wrong, and the present."""
        with self._lock:
            try:
                message = command()
            except REFUSALS as error:
                message = str(error)
            self.show(message)

    def step(self, action: tuple[float, float, float]) -> str:
        """One step."""
        start_s = time.perf_counter()
        self.session.step(np.array(action, np.float32))
        self._rate = 1.0 / (time.perf_counter() - start_s)
        return ""

    def show(self, message: str = "") -> None:
        """Draws the view and memory again; the lock is held, or nothing else runs yet."""
        self.image.image = self._picture()
        line = status_line(self.session, self.overlay, False, self._rate, None)
        self.message.content = f"{line}\n\n**{message}**" if message else line
        self._draw_memory()

    def _draw_view(self) -> None:
        with self._lock:
            self.image.image = self._picture()

    def _button(self, name: str, command: Callable[[], str]) -> None:
        self.server.gui.add_button(name).on_click(lambda _: self.do(command))

    def _step(self, action: tuple[float, float, float]) -> Callable[[Any], None]:
        return lambda _: self.do(lambda: self.step(action))

    def _set_overlay(self) -> str:
        before, self.overlay = self.overlay, self.overlays.value
        try:
            overlay_pictures(self.session, self.overlay)
        except REFUSALS:
            self.overlay = before
            raise
        return f"overlay: {self.overlay}"

    def _picture(self) -> np.ndarray:
        """The views, or their overlay, side by side and enlarged, with the rectangle of the sliders."""
        pictures = overlay_pictures(self.session, self.overlay)
        pictures += [view.frames[-1] for view in self.session.views[len(pictures) :]]
        first_column = sum(picture.shape[1] for picture in pictures[: self.session.view_index]) * ENLARGEMENT
        picture = np.concatenate(pictures, axis=1).repeat(ENLARGEMENT, 0).repeat(ENLARGEMENT, 1)
        if hasattr(self, "box"):
            top, left, bottom, right = (slider.value * ENLARGEMENT for slider in self.box)
            left, right = left + first_column, right + first_column
            for rows, columns in ((slice(top, bottom), [left, right - 1]), ([top, bottom - 1], slice(left, right))):
                if bottom > top and right > left:
                    picture[rows, columns] = (250, 200, 90)
        return picture

    def _draw_memory(self) -> None:
        """Memory as colored points, and the body's camera."""
        scene, view = self.server.scene, self.session.view
        camera, k = view.world_from_camera[-1], view.image_from_camera
        height, width = view.depth_m.shape
        fov = 2 * np.arctan(height / (2 * k[1, 1]))
        scene.add_camera_frustum("/body", fov, width * k[1, 1] / (height * k[0, 0]), scale=0.5, image=view.frames[-1],
                                 wxyz=quaternion(camera[:3, :3]), position=camera[:3, 3])  # fmt: skip
        try:
            memory = self.session.memory
        except RuntimeError:
            return
        points, colors = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)]
        for keyframe in memory.keyframes:
            alive = keyframe.alive.cpu().numpy()
            points.append(keyframe.points_m.cpu().numpy()[alive])
            color = np.full((*alive.shape, 3), 160, np.uint8)
            if keyframe.image is not None:
                rows, columns = (s // n for s, n in zip(keyframe.image.shape[1:], alive.shape, strict=True))
                small = keyframe.image[:, rows // 2 :: rows, columns // 2 :: columns].float().permute(1, 2, 0)
                color = ((small.cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
            colors.append(color[alive])
        points, colors = np.concatenate(points)[-MOST_POINTS:], np.concatenate(colors)[-MOST_POINTS:]
        scene.add_point_cloud("/memory", points.astype(np.float32), colors, point_size=0.08)

    def _select(self) -> str:
        from mosaic_gym.memory.editing import centre_m

        message = self.session.select(tuple(float(slider.value) for slider in self.box))
        self._centre = centre_m(self.session.memory, self.session.selection)
        self.handles = self.server.scene.add_transform_controls("/handles", scale=0.8, position=self._centre)
        return f"{message}; drag the handles, then move"

    def _move(self) -> str:
        if self.handles is None:
            raise ValueError("nothing is selected: select first")
        rotation = rotation_of(np.asarray(self.handles.wxyz))
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = np.asarray(self.handles.position) - rotation @ self._centre
        message = self.session.transform(matrix)
        self.handles.remove()
        self.handles = None
        return message


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation `[3, 3]`."""
    from viser.transforms import SO3

    return SO3.from_matrix(rotation).wxyz


def rotation_of(wxyz: np.ndarray) -> np.ndarray:
    """The rotation `[3, 3]` of a quaternion (w, x, y, z)."""
    from viser.transforms import SO3

    return SO3(wxyz).as_matrix()


def serve(config: ServeConfig) -> None:
    """Serves until it is interrupted.

    Raises:
        OSError: the address cannot be listened on.
    """
    import gymnasium as gym
    import viser

    import mosaic_gym  # noqa: F401  (registers the environments)

    env = gym.make(
        "MosaicWorld-v0", max_episode_steps=-1, checkpoint=config.checkpoint, device=config.device,
        action_space="continuous", prompt=config.prompt,
    ).unwrapped  # fmt: skip
    session = Session(env, seed=config.seed)
    server = viser.ViserServer(config.host, config.port, label="Mosaic Gym", verbose=False)
    BrowserView(session, server)
    print(f"http://{config.host}:{server.get_port()}", flush=True)
    try:
        server.sleep_forever()
    finally:
        server.stop()
        session.close()
