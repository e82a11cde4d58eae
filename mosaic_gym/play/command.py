"""`mosaic-gym play`: its options, and what it opens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym

import mosaic_gym  # noqa: F401  (registers the environments)
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.window import check_display
from mosaic_gym.play.app import App, PlayOptions, load_image
from mosaic_gym.play.bindings import default_bindings, load_bindings
from mosaic_gym.play.policies import load_policy
from mosaic_gym.play.session import Session


@dataclass(frozen=True)
class PlayConfig:
    """Walk through the learned world with keys, mouse or gamepad; h lists the keys."""

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
    image: Path | None = None
    """Start from this picture, resized to the world's frames, instead of one of the checkpoint's."""
    compare: bool = False
    """Show the simulator to the right, with the same start and the same actions."""
    scenario: str | None = None
    """The simulator's scenario; None for the one that the checkpoint was trained on."""
    policy: str | None = None
    """What can steer instead of you: `walk`, or the .zip of a Stable-Baselines3 agent."""
    keys: Path | None = None
    """TOML file with other keys: a table `keys` with a list of key names for each command."""
    out: Path = Path("out/play")
    """Folder of recordings, screenshots and the saved scene."""
    seed: int = 0
    """Seed of the first episode; it grows by one with every new episode."""
    max_steps: int | None = None
    """Close after so many steps; None runs until the window is closed."""
    screenshot: Path | None = None
    """Save the last image of the window here (PNG)."""


def play(config: PlayConfig) -> int:
    """Opens the window on the learned world, plays until it is closed, and returns the number of steps.

    Raises:
        OSError: no window can open here, or a file cannot be read. It is raised before anything slow is loaded.
        ValueError: keys, a picture or a policy that cannot be used.
    """
    try:
        check_display()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    bindings = default_bindings() if config.keys is None else load_bindings(config.keys)
    learned = gym.make(
        "MosaicWorld-v0",
        max_episode_steps=-1,
        checkpoint=config.checkpoint,
        device=config.device,
        denoising_steps=config.denoising_steps,
        action_space="continuous",
        memory=config.memory,
        prompt=config.prompt,
    ).unwrapped
    size = learned.world.height, learned.world.width
    policy = None if config.policy is None else (lambda: load_policy(config.policy, size, config.seed))
    session = Session(
        learned, lambda: simulator_beside(learned, config.scenario), policy, config.seed, compare=config.compare
    )
    note = ""
    if config.image is not None:
        image, note = load_image(config.image, size)
        session.restart(config.seed, image, config.prompt)
    try:
        app = App(session, PlayOptions(config.out, config.max_steps, config.screenshot), bindings)
        if note:
            app.say(note.removeprefix(", "))
        return app.run()
    finally:
        session.close()


def simulator_beside(learned: WorldEnv, scenario: str | None) -> WorldEnv:
    """The simulator, with the kinematics of the learned world."""
    from mosaic_gym.evaluation.suites.paths import simulator_of

    settings = learned.world.model.settings
    simulator = simulator_of(settings if scenario is None else replace(settings, scenario=scenario))
    return WorldEnv(simulator, action_space="continuous", options=("goal", "pose"))
