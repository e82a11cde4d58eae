"""The window: walk through the learned world with the keyboard, with the simulator beside it on request.

Keys: W and S (or up and down) walk, A and D step sideways, left and right turn, R starts a new episode, Escape quits.
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
from mosaic_gym.envs.window import Window, check_display

GAP_PX = 2
"""Between the learned world and the simulator, pixels before enlargement."""


@dataclass(frozen=True)
class PlayConfig:
    """Walk through the learned world with the keyboard."""

    checkpoint: str = "doom-tiny"
    """Shipped checkpoint by name, or a folder."""
    device: str = "cpu"
    """Device that the networks run on."""
    denoising_steps: int | None = None
    """1 to 100; None uses the checkpoint's own number."""
    memory: bool = True
    """Retrieve earlier views from memory."""
    prompt: str | None = None
    """Text that conditions the learned world."""
    compare: bool = False
    """Show the simulator to the right, with the same start and the same actions."""
    scenario: str | None = None
    """The simulator's scenario with --compare; None for the one that the checkpoint was trained on."""
    seed: int = 0
    """Seed of the first episode; it grows by one with every new episode."""
    max_steps: int | None = None
    """Close after so many steps; None runs until the window is closed."""
    screenshot: Path | None = None
    """Save the last image of the window here (PNG)."""


class Keyboard:
    """The keys that are down, tracked from pygame's events.

    Attributes:
        quit: whether the window was closed or Escape pressed.
        restart: whether R was pressed since the last `read`.
    """

    def __init__(self) -> None:
        self.quit = False
        self.restart = False
        self._down: set[int] = set()

    def read(self) -> np.ndarray:
        """Processes new events; returns the action `[3]` float32 of the keys that are down or were tapped."""
        import pygame

        self.restart = False
        pressed: set[int] = set()  # a tap can be shorter than a step, and over by now
        for event in pygame.event.get():
            if event.type == pygame.KEYDOWN:
                self._down.add(event.key)
                pressed.add(event.key)
                self.restart |= event.key == pygame.K_r
                self.quit |= event.key == pygame.K_ESCAPE
            elif event.type == pygame.KEYUP:
                self._down.discard(event.key)
            elif event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
                self.quit = True
        active = self._down | pressed
        forward = _axis(active, {pygame.K_w, pygame.K_UP}, {pygame.K_s, pygame.K_DOWN})
        strafe = _axis(active, {pygame.K_d}, {pygame.K_a})
        turn = _axis(active, {pygame.K_RIGHT}, {pygame.K_LEFT})
        return np.array([forward, strafe, turn], np.float32)


def _axis(active: set[int], positive: set[int], negative: set[int]) -> float:
    return float(not active.isdisjoint(positive)) - float(not active.isdisjoint(negative))


class Stage:
    """The learned environment and, optionally, the simulator beside it.

    Args:
        learned: with continuous actions.
        simulator: with continuous actions; None shows the learned environment alone.
    """

    def __init__(self, learned: gym.Env, simulator: gym.Env | None = None) -> None:
        self.learned, self.simulator = learned, simulator
        self.steps = 0
        self._info: dict = {}
        self._step_s = 0.0

    def reset(self, seed: int) -> None:
        """Resets both. The learned world starts with the image and the pose of the simulator."""
        options = None
        if self.simulator is not None:
            image, info = self.simulator.reset(seed=seed)
            options = {"image": image, "pose": info["pose"]}
        _, self._info = self.learned.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> bool:
        """Steps both with the action `[3]`; returns whether one of them has ended."""
        start_s = time.perf_counter()
        _, _, ended, _, self._info = self.learned.step(action)
        step_s = time.perf_counter() - start_s
        self._step_s = step_s if self.steps == 0 else 0.9 * self._step_s + 0.1 * step_s
        self.steps += 1
        if self.simulator is not None:
            ended |= self.simulator.step(action)[2]
        return ended

    def frames(self) -> np.ndarray:
        """uint8 `[4, H, W, 3]`: the frames of the last step, side by side."""
        frames = self.learned.unwrapped.view.frames
        if self.simulator is None:
            return frames
        gap = np.zeros((*frames.shape[:2], GAP_PX, 3), np.uint8)
        return np.concatenate([frames, gap, self.simulator.unwrapped.view.frames], axis=2)

    def line(self) -> str:
        """The text in the strip under the image."""
        speed = f"{1 / self._step_s:.0f} steps/s" if self.steps else "ready"
        atlas = "   the rest from the atlas" if self.learned.unwrapped.view.on_map else ""
        return (
            f"step {self._info['step_index']}   retrieved {self._info['coverage']:.0%}{atlas}   "
            f"keyframes {self._info['memory_keyframes']}   {speed}"
        )

    def close(self) -> None:
        """Closes both environments."""
        self.learned.close()
        if self.simulator is not None:
            self.simulator.close()


def walk(stage: Stage, config: PlayConfig) -> int:
    """Plays until the window is closed or after `config.max_steps` steps; returns the number of steps."""
    seed = config.seed
    stage.reset(seed)
    keyboard = Keyboard()
    window = Window(*stage.frames().shape[1:3], "Mosaic Gym", strip=True)
    try:
        window.show(stage.frames()[-1], FRAMES_PER_SECOND, stage.line())
        while stage.steps != config.max_steps:
            action = keyboard.read()
            if keyboard.quit:
                break
            ended = stage.step(action)
            for frame in stage.frames():
                window.show(frame, FRAMES_PER_SECOND, stage.line())
            if ended or keyboard.restart:
                seed += 1
                stage.reset(seed)
        if config.screenshot is not None:
            iio.imwrite(config.screenshot, window.pixels())
    finally:
        window.close()
    return stage.steps


def play(config: PlayConfig) -> int:
    """Opens the window on the learned world, plays until it is closed, and returns the number of steps.

    Raises:
        OSError: no window can open here. It is raised before anything is loaded.
    """
    try:
        check_display()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    learned = gym.make(
        "MosaicWorld-v0",
        max_episode_steps=-1,
        checkpoint=config.checkpoint,
        device=config.device,
        denoising_steps=config.denoising_steps,
        action_space="continuous",
        memory=config.memory,
        prompt=config.prompt,
    )
    simulator = _simulator_beside(learned, config.scenario) if config.compare else None
    stage = Stage(learned, simulator)
    try:
        return walk(stage, config)
    finally:
        stage.close()


def _simulator_beside(learned: gym.Env, scenario: str | None) -> gym.Env:
    """The simulator, with the kinematics of the learned world."""
    from mosaic_gym.evaluation.suites.paths import simulator_of

    settings = learned.unwrapped.world.model.settings
    simulator = simulator_of(settings if scenario is None else replace(settings, scenario=scenario))
    return WorldEnv(simulator, action_space="continuous", options=("goal", "pose"))
