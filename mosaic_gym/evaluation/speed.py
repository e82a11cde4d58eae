"""How fast the environment steps, and how soon a fresh process shows its first frame."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

FIRST_FRAME = "import gymnasium as gym, mosaic_gym; gym.make('MosaicWorld-v0', checkpoint={checkpoint!r}).reset(seed=0)"


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate speed` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    steps: int = 120
    """Environment steps that are timed."""
    warm_up: int = 60
    """Steps before that, which fill the memory."""


def steps_per_second(checkpoint: str, steps: int, warm_up: int) -> dict[str, float]:
    """Steps (four frames each) a second of one environment through `gym.make`: median, 5th and 95th percentile."""
    import gymnasium as gym
    import numpy as np

    import mosaic_gym  # noqa: F401, registers the ids

    env = gym.make("MosaicWorld-v0", checkpoint=checkpoint, max_episode_steps=warm_up + steps + 1)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    spent = []
    for index in range(warm_up + steps):
        started = time.perf_counter()
        env.step(int(rng.integers(env.action_space.n)))
        if index >= warm_up:
            spent.append(time.perf_counter() - started)
    env.close()
    slow, middle, fast = np.percentile(1.0 / np.array(spent), [5, 50, 95])
    return {"value": float(middle), "low": float(slow), "high": float(fast)}


def first_frame_s(checkpoint: str) -> float:
    """Seconds from starting Python to the first frame."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_FRAME.format(checkpoint=checkpoint)], check=True)
    return time.perf_counter() - started


def evaluate(config: Config) -> dict[str, float]:
    """Prints both.

    Raises:
        ValueError: no step to time, or a negative warm-up.
    """
    import torch

    if config.steps < 1 or config.warm_up < 0:
        raise ValueError("give at least 1 step, and a warm-up of 0 or more")
    rate = steps_per_second(config.checkpoint, config.steps, config.warm_up)
    seconds = first_frame_s(config.checkpoint)
    print(f"steps_per_second: {rate['value']:.1f} (goal >= 20; 5 to 95 %: {rate['low']:.1f} to {rate['high']:.1f})")
    print(f"first frame of a fresh process: {seconds:.1f} s (goal <= 12); torch threads: {torch.get_num_threads()}")
    return {"steps_per_second": rate["value"], "first_frame_s": seconds}
