"""The window: walk through the dream with the keyboard, next to the engine if you like.

Keys: W and S (or up and down) walk, A and D step sideways, left and right turn, R begins anew,
Escape leaves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import mosaic_gym  # noqa: F401  (registers the environments)
from mosaic_gym.envs.mosaic_env import FRAMES_PER_SECOND, WorldEnv
from mosaic_gym.envs.window import Window

GAP_PX = 2
"""Between the dream and the engine, pixels before enlargement."""


@dataclass(frozen=True)
class PlayConfig:
    """Play in the dream with the keyboard."""

    checkpoint: str = "doom-tiny"
    """Shipped checkpoint by name, or a folder."""
    device: str = "cpu"
    """Where the networks run."""
    denoising_steps: int | None = None
    """1 to 100; None for what the checkpoint ships with."""
    memory: bool = True
    """Recall what the episode has seen."""
    prompt: str | None = None
    """Text that conditions the dream."""
    compare: bool = False
    """Show the engine to the right, begun at the same place and given the same actions."""
    scenario: str | None = None
    """What the engine plays, when it is shown; None for what the checkpoint was trained on."""
    seed: int = 0
    """Of the first episode; each new one adds one."""
    max_steps: int | None = None
    """Close after so many steps; None plays until the window is closed."""
    screenshot: Path | None = None
    """Write the last picture of the window here (PNG)."""


class Keyboard:
    """The keys held down, kept from the events that pygame delivers.

    Attributes:
        quit: whether the window was closed or Escape pressed.
        restart: whether R was pressed since the last `read`.
    """

    def __init__(self) -> None:
        self.quit = False
        self.restart = False
        self._held: set[int] = set()

    def read(self) -> np.ndarray:
        """Takes in what happened; returns the action `[3]` float32 of the keys held now, or tapped since last time."""
        import pygame

        self.restart = False
        pressed: set[int] = set()  # a tap is shorter than a step: it may be over by now
        for event in pygame.event.get():
            if event.type == pygame.KEYDOWN:
                self._held.add(event.key)
                pressed.add(event.key)
                self.restart |= event.key == pygame.K_r
                self.quit |= event.key == pygame.K_ESCAPE
            elif event.type == pygame.KEYUP:
                self._held.discard(event.key)
            elif event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
                self.quit = True
        down = self._held | pressed
        forward = _axis(down, {pygame.K_w, pygame.K_UP}, {pygame.K_s, pygame.K_DOWN})
        strafe = _axis(down, {pygame.K_d}, {pygame.K_a})
        turn = _axis(down, {pygame.K_RIGHT}, {pygame.K_LEFT})
        return np.array([forward, strafe, turn], np.float32)


def _axis(down: set[int], positive: set[int], negative: set[int]) -> float:
    return float(not down.isdisjoint(positive)) - float(not down.isdisjoint(negative))


class Stage:
    """The dream and, when there is one, the engine beside it.

    Args:
        dream: actions are continuous.
        engine: the same; None to show the dream alone.
    """

    def __init__(self, dream: gym.Env, engine: gym.Env | None = None) -> None:
        self.dream, self.engine = dream, engine
        self.steps = 0
        self._info: dict = {}
        self._step_s = 0.0

    def begin(self, seed: int) -> None:
        """Resets both. The dream begins with what the engine shows, where the engine stands."""
        options = None
        if self.engine is not None:
            image, info = self.engine.reset(seed=seed)
            options = {"image": image, "pose": info["pose"]}
        _, self._info = self.dream.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> bool:
        """Steps both by the action `[3]`; returns whether one of them has ended."""
        started_s = time.perf_counter()
        _, _, over, _, self._info = self.dream.step(action)
        took_s = time.perf_counter() - started_s
        self._step_s = took_s if self.steps == 0 else 0.9 * self._step_s + 0.1 * took_s
        self.steps += 1
        if self.engine is not None:
            over |= self.engine.step(action)[2]
        return over

    def pictures(self) -> np.ndarray:
        """uint8 `[4, H, W, 3]`: the frames of the last step, side by side."""
        frames = self.dream.unwrapped.view.frames
        if self.engine is None:
            return frames
        gap = np.zeros((*frames.shape[:2], GAP_PX, 3), np.uint8)
        return np.concatenate([frames, gap, self.engine.unwrapped.view.frames], axis=2)

    def line(self) -> str:
        """What the strip under the picture says."""
        speed = f"{1 / self._step_s:.0f} steps/s" if self.steps else "ready"
        drawn = "   the rest by heart" if self.dream.unwrapped.view.on_map else ""
        return (
            f"step {self._info['step_index']}   recalled {self._info['coverage']:.0%}{drawn}   "
            f"keyframes {self._info['memory_keyframes']}   {speed}"
        )

    def close(self) -> None:
        """Closes both environments."""
        self.dream.close()
        if self.engine is not None:
            self.engine.close()


def walk(stage: Stage, config: PlayConfig) -> int:
    """Plays on a stage until the window is closed or `config.max_steps` are made; returns the steps made."""
    seed = config.seed
    stage.begin(seed)
    keyboard = Keyboard()
    window = Window(*stage.pictures().shape[1:3], "Mosaic Gym", strip=True)
    try:
        window.show(stage.pictures()[-1], FRAMES_PER_SECOND, stage.line())
        while stage.steps != config.max_steps:
            action = keyboard.read()
            if keyboard.quit:
                break
            over = stage.step(action)
            for picture in stage.pictures():
                window.show(picture, FRAMES_PER_SECOND, stage.line())
            if over or keyboard.restart:
                seed += 1
                stage.begin(seed)
        if config.screenshot is not None:
            iio.imwrite(config.screenshot, window.pixels())
    finally:
        window.close()
    return stage.steps


def play(config: PlayConfig) -> int:
    """Opens the window on the dream, plays until it is closed, and returns the steps made."""
    dream = gym.make(
        "MosaicWorld-v0",
        max_episode_steps=-1,
        checkpoint=config.checkpoint,
        device=config.device,
        denoising_steps=config.denoising_steps,
        action_space="continuous",
        memory=config.memory,
        prompt=config.prompt,
    )
    engine = _simulator_beside(dream, config.scenario) if config.compare else None
    stage = Stage(dream, engine)
    try:
        return walk(stage, config)
    finally:
        stage.close()


def _simulator_beside(dream: gym.Env, scenario: str | None) -> gym.Env:
    """The engine, whose body moves as the dream's does."""
    from mosaic_gym.evaluation.suites.paths import simulator_of

    settings = dream.unwrapped.world.model.settings
    engine = simulator_of(settings if scenario is None else replace(settings, scenario=scenario))
    return WorldEnv(engine, action_space="continuous", options=("goal", "pose"))
