"""The window's loop: inputs and drawing sixty times a second, while a worker computes the steps.

`h` lists the keys. `bindings.py` names them, `session.py` does what they ask for, `screen.py` draws.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as Job
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from mosaic_gym.envs.mosaic_env import FRAMES_PER_SECOND
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.play.bindings import Bindings
from mosaic_gym.play.explain import overlay_pictures, overlays_of, panel_pictures, status_line
from mosaic_gym.play.inputs import InputEvents, Inputs, load_image
from mosaic_gym.play.prompt_line import PromptLine
from mosaic_gym.play.recorder import Recorder, next_number
from mosaic_gym.play.screen import Content, Screen
from mosaic_gym.play.session import GUIDANCE_STEP, Session

REDRAWS_PER_SECOND = 60.0
HISTORY = 120
"""Steps in the curves."""
GALLERY_SIZE = 24
MESSAGE_S = 6.0
"""How long a message stays."""
SAVED = "scene.safetensors"
FAST_REWIND = 10
"""Steps of a rewind with shift."""
JUMPS = ("restart", "rewind", "replay", "fork", "steer", "simulator", "load")
"""Commands after which the next view does not follow from the last one."""
REFUSALS = (ValueError, TypeError, RuntimeError, OSError, MemoryError, ImportError)
"""What a command may raise: the window shows it, and play goes on."""


@dataclass(frozen=True)
class PlayOptions:
    """How the loop runs.

    Attributes:
        out: folder of recordings, screenshots and the saved scene.
        max_steps: it ends after so many steps; None for no limit.
        screenshot: file for the last image of the window; None for none.
    """

    out: Path = Path("out/play")
    max_steps: int | None = None
    screenshot: Path | None = None


class App:
    """The loop.

    Args:
        session: what is played.
        options: how the loop runs.
        bindings: which key does what.
    """

    def __init__(self, session: Session, options: PlayOptions, bindings: Bindings) -> None:
        self.session, self.options, self.bindings = session, options, bindings
        height, width = session.views[0].frames.shape[1:3]
        self.screen = Screen(height, width, count=len(session.views))
        self.inputs = Inputs(bindings)
        self.steps = 0
        self.overlay = "none"
        self.paused = self.shows_help = self.shows_map = self.shows_curves = self.done = False
        self._single = False
        self._message, self._message_until = "h lists the keys", time.monotonic() + MESSAGE_S
        self._line: PromptLine | None = None
        self._typed: list[tuple[str, str]] = []
        self._gallery: list[np.ndarray] = []
        self._drag: tuple[int, int, tuple[float, float], tuple[float, float]] | None = None
        self._recorder: Recorder | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="world")
        self._job: Job | None = None
        self._commands: deque[tuple[str, bool]] = deque()
        self._actions: list[Callable[[], str | None]] = []
        self._queue: deque[tuple[float, list[np.ndarray]]] = deque()
        self._pictures = [view.frames[-1] for view in session.views]
        self._panel: list[np.ndarray] = []
        self._curves: dict[str, deque[float]] = {
            name: deque(maxlen=HISTORY) for name in ("coverage", "reward", "forward", "steps/s")
        }
        self._handlers = self._make_handlers()

    def run(self) -> int:
        """Plays until the window is closed or after `options.max_steps` steps; returns the number of steps."""
        import pygame

        clock = pygame.time.Clock()
        try:
            while not self.done:
                self.handle(self.inputs.read())
                self.advance()
                self.screen.draw(self.content())
                clock.tick(REDRAWS_PER_SECOND)
            if self.options.screenshot is not None:
                self.options.screenshot.parent.mkdir(parents=True, exist_ok=True)
                iio.imwrite(self.options.screenshot, self.screen.pixels())
        finally:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self.screen.close()
            if self._recorder is not None:
                print(self._recorder.close())
        return self.steps

    # Inputs

    def handle(self, events: InputEvents) -> None:
        """Takes new inputs. What changes the session waits for the step that is being computed."""
        self.done |= events.closed
        self._typed += events.typed
        if self._line is not None:
            self._type()
        for command in events.commands:
            self._commands.append((command, events.shift))
        for path in events.drops:
            self._actions.append(lambda path=path: self._start_from(path))
        for kind, position, button in events.mouse:
            self._point(kind, position, button)

    def advance(self) -> None:
        """Takes the finished step, runs waiting commands, and starts the next step. Never waits for the worker."""
        if self._job is not None and self._job.done():
            job, self._job = self._job, None
            try:
                self._finish(*job.result())
            except REFUSALS as error:
                self.paused = True
                self.say(str(error))
        if self._job is None:
            while self._commands and self._job is None:
                command, shift = self._commands.popleft()
                self._try(lambda command=command, shift=shift: self._handlers[command](shift))
            actions, self._actions = self._actions, []
            for action in actions:
                self._try(action)
        waiting = len(self._queue) > FRAMES_PER_STEP
        if self._job is None and not self.done and not waiting and self._line is None and not self._gallery:
            if self.steps == self.options.max_steps and not self._queue:
                self.done = True
            elif self.steps != self.options.max_steps and (not self.paused or self._single):
                self._single = False
                action = self.inputs.action()
                self._job = self._worker.submit(self._compute, action)

    def say(self, message: str) -> None:
        """Shows a message for some seconds."""
        self._message, self._message_until = message.splitlines()[0] if message else "", time.monotonic() + MESSAGE_S

    # The worker's side

    def _compute(self, action: np.ndarray) -> tuple[list[Any], np.ndarray, float, list[np.ndarray]]:
        """The views after a step, the action that was taken, its time in seconds, and the overlay's pictures."""
        start_s = time.perf_counter()
        views = self.session.step(action)
        step_s = time.perf_counter() - start_s
        return views, self.session.last_action, step_s, overlay_pictures(self.session, self.overlay)

    # After a step

    def _finish(self, views: list[Any], action: np.ndarray, step_s: float, overlay: list[np.ndarray]) -> None:
        self.steps += 1
        session, still = self.session, [np.stack([picture] * FRAMES_PER_STEP) for picture in overlay]
        moving = [] if session.in_simulator else session.is_steered
        moving += [True] * (len(views) - len(moving))  # simulators
        frames = still + [
            view.frames if moves else np.stack([view.frames[-1]] * FRAMES_PER_STEP)
            for view, moves in list(zip(views, moving, strict=True))[len(still) :]
        ]
        interval_s = max(1.0 / FRAMES_PER_SECOND, step_s / FRAMES_PER_STEP)
        due_s = max(time.monotonic(), self._queue[-1][0] + interval_s if self._queue else 0.0)
        for index in range(FRAMES_PER_STEP):
            self._queue.append((due_s + index * interval_s, [picture[index] for picture in frames]))
        view = views[session.view_index]
        values = view.coverage, view.reward, float(action[0]), 1.0 / max(step_s, 1e-6)
        for name, value in zip(self._curves, values, strict=True):
            self._curves[name].append(value)
        if not session.in_simulator and not session.current.present.episode.steps:
            self._cut_recording()  # the episode has ended, and this is the next one's start
        if self._recorder is not None:
            self._add_to_recording(view, action)
        self._draw_panel()

    def _add_to_recording(self, view: Any, action: np.ndarray) -> None:
        recorder, prompt = self._recorder, "" if self.session.in_simulator else self.session.prompt
        try:
            recorder.add(view, action, prompt)
        except (OSError, RuntimeError) as error:  # RuntimeError: the encoder ended
            self._recorder = None
            self.say(recorder.end_after(error))

    def _cut_recording(self) -> None:
        """Goes on in another file, since the next view does not follow from the last one."""
        if self._recorder is not None and self._recorder.steps:
            recorder, self._recorder = self._recorder, None
            recorder.close()
            self._recorder = Recorder(self.options.out, recorder.scenario)

    def _show_present(self) -> None:
        """Shows the present moment at once, after time or memory changed."""
        self._queue.clear()
        self._pictures = [view.frames[-1] for view in self.session.views]
        pictures = overlay_pictures(self.session, self.overlay)
        self._pictures[: len(pictures)] = pictures
        self._draw_panel()

    def _draw_panel(self) -> None:
        self._panel = panel_pictures(self.session, self.shows_map, self._curves if self.shows_curves else None)

    # Drawing

    def content(self) -> Content:
        """What the window shows now."""
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            self._pictures = self._queue.popleft()[1]
        session = self.session
        message = self._message if now < self._message_until else ""
        if self._line is not None:
            message = f"prompt: {self._line.text}_   (return takes it, escape does not, up and down offer prompts)"
        box = None
        if self._drag is not None and self._drag[0] == 1:
            (top, left), (bottom, right) = self._drag[2:]
            box = (self._drag[1], (top, left, bottom, right))
        rate = self._curves["steps/s"][-1] if self._curves["steps/s"] else None
        number = None if self._recorder is None else self._recorder.number
        status = status_line(session, self.overlay, self.paused, rate, number)
        return Content(
            self._pictures, session.is_steered, status, message, self.inputs.held,
            self.bindings.help() if self.shows_help else (), self._panel, box, self._gallery,
        )  # fmt: skip

    # Commands

    def _make_handlers(self) -> dict[str, Callable[[bool], str | None]]:
        session = self.session
        handlers: dict[str, Callable[[bool], str | None]] = {
            "restart": lambda _: session.restart(),
            "rewind": lambda shift: session.move_in_time(-FAST_REWIND if shift else -1),
            "replay": lambda shift: session.move_in_time(FAST_REWIND if shift else 1),
            "fork": lambda _: session.fork(),
            "steer": lambda _: session.next_steering(),
            "simulator": lambda _: session.switch_simulator(),
            "policy": lambda _: session.switch_policy(),
            "memory": lambda _: session.switch_memory(),
            "more_guidance": lambda _: session.change_guidance(GUIDANCE_STEP),
            "less_guidance": lambda _: session.change_guidance(-GUIDANCE_STEP),
            "load": lambda _: session.load(self.options.out / SAVED),
            "undo": lambda _: session.undo(),
            "redo": lambda _: session.redo(),
        }
        for name in ("remove", "duplicate", "enlarge", "turn"):
            handlers[name] = lambda _, name=name: session.edit(name)
        handlers = {name: self._redrawn(name, handler) for name, handler in handlers.items()}
        return handlers | {
            "help": lambda _: self._flip("shows_help"),
            "quit": lambda _: self._quit(),
            "pause": lambda _: self._flip("paused"),
            "single_step": lambda _: self._step_once(),
            "fork_prompt": lambda _: self._ask_prompt(session.fork),
            "prompt": lambda _: self._ask_prompt(session.set_prompt),
            "overlay": lambda _: self._next_overlay(),
            "map": lambda _: self._flip("shows_map"),
            "curves": lambda _: self._flip("shows_curves"),
            "mouse_look": lambda _: self._switch_mouse(),
            "gallery": lambda _: self._open_gallery(),
            "record": lambda _: self._record(),
            "screenshot": lambda _: self._save_screenshot(),
            "save": lambda _: self._save(),
        }

    def _redrawn(self, name: str, handler: Callable[[bool], str | None]) -> Callable[[bool], str | None]:
        """A command after which the present is drawn again. After a rewind, time stands still."""

        def run(shift: bool) -> str | None:
            message = handler(shift)
            if name in JUMPS:
                self._cut_recording()
            self.paused |= name in ("rewind", "replay")
            self._show_present()
            return message

        return run

    def _try(self, command: Callable[[], str | None]) -> None:
        try:
            message = command()
        except REFUSALS as error:
            message = str(error)
        if message:
            self.say(message)

    def _flip(self, name: str) -> None:
        setattr(self, name, not getattr(self, name))
        self._draw_panel()

    def _quit(self) -> None:
        self.done = not self._gallery  # the key closes the gallery first
        self._gallery = []

    def _step_once(self) -> None:
        self.paused = self._single = True

    def _next_overlay(self) -> str:
        before, names = self.overlay, overlays_of(self.session)
        self.overlay = names[(names.index(before) + 1) % len(names)] if before in names else names[0]
        try:
            self._show_present()
        except REFUSALS:
            self.overlay = before
            raise
        return f"overlay: {self.overlay}"

    def _switch_mouse(self) -> str:
        import pygame

        self.inputs.mouse_look = not self.inputs.mouse_look
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there is no window of `pygame.display`
            pygame.mouse.set_relative_mode(self.inputs.mouse_look)  # it is hidden, and moves without an end
        return "the mouse turns you" if self.inputs.mouse_look else "the mouse is free"

    def _open_gallery(self) -> str:
        model = getattr(self.session.env.world, "model", None)
        images = [] if self._gallery or model is None else list(model.start_images[:GALLERY_SIZE].cpu().numpy())
        if not self._gallery and not images:
            raise ValueError("this world has no start images")
        self._gallery = images
        return "click on a start image" if images else ""

    def _choose(self, index: int) -> str:
        image = self._gallery[index]
        self._gallery = []
        prompt = self.session.env.world.model.start_prompts[index]
        return self._restart_from(image, prompt)

    def _start_from(self, path: Path) -> str:
        image, note = load_image(path, self.session.views[0].frames.shape[1:3])
        return f"{self._restart_from(image)}{note}"

    def _restart_from(self, image: np.ndarray, prompt: str | None = None) -> str:
        session = self.session
        return self._redrawn("restart", lambda _: session.restart(session.seed, image, prompt))(False)

    def _record(self) -> str:
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            return recorder.close()
        settings = getattr(getattr(self.session.env.world, "model", None), "settings", None)
        self._recorder = Recorder(self.options.out, getattr(settings, "scenario", "played"))
        return f"recording {self._recorder.video}"

    def _save_screenshot(self) -> str:
        self.options.out.mkdir(parents=True, exist_ok=True)
        number = next_number(file.stem.removeprefix("screen-") for file in self.options.out.glob("screen-*.png"))
        path = self.options.out / f"screen-{number:04d}.png"
        iio.imwrite(path, self.screen.pixels())
        return f"saved {path}"

    def _save(self) -> str:
        self.options.out.mkdir(parents=True, exist_ok=True)
        return self.session.save(self.options.out / SAVED)

    # The prompt

    def _ask_prompt(self, answer: Callable[[str], str]) -> str | None:
        if answer == self.session.fork and len(self.session.futures) == 2:
            self._typed, self.inputs.typing = [], False
            return self._redrawn("fork", lambda _: self.session.fork())(False)
        model = getattr(self.session.env.world, "model", None)
        self._line = PromptLine(self.session.prompt, getattr(model, "start_prompts", ()), answer)
        self._type()
        return None

    def _type(self) -> None:
        line, typed = self._line, self._typed
        self._typed = []
        if not line.read(typed):
            return
        self._line, self.inputs.typing = None, False
        if line.taken:
            self._actions.append(lambda: self._redrawn("prompt", lambda _: line.answer(line.text))(False))

    # The mouse

    def _point(self, kind: str, position: tuple[int, int], button: int) -> None:
        """Left: selects a rectangle, or an image of the gallery. Right: drags what is selected."""
        if self._gallery:
            if kind == "down" and (index := self.screen.tile_at(position)) is not None:
                self._actions.append(lambda: self._choose(index))
            return
        index = self.session.view_index if self._drag is None else self._drag[1]
        place = self.screen.place_in_picture(position, index)
        if kind == "down" and button in (1, 3) and place is not None:
            self._drag = (button, index, place, place)
        elif kind == "move" and self._drag is not None and place is not None:
            self._drag = (*self._drag[:3], place)
            self.paused |= self._drag[0] == 1  # or the next step would move what is selected away
        elif kind == "up" and self._drag is not None:
            (button, _, start, end), self._drag = self._drag, None
            self._actions.append(lambda: self._dragged(button, start, end))

    def _dragged(self, button: int, start: tuple[float, float], end: tuple[float, float]) -> str | None:
        if start == end:
            return None
        if button == 3:
            message = self.session.drag(end[1] - start[1], end[0] - start[0])
            self._show_present()
            return message
        (top, bottom), (left, right) = (sorted(pair) for pair in zip(start, end, strict=True))
        return self.session.select((top, left, bottom, right))
