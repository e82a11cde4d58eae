"""How fast the environment steps, alone and as many; what a fork costs; how soon the first frame comes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic_gym.worlds.state import WorldState

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
    members: int = 16
    """Of the vector environment."""
    vector_steps: int = 12
    """Steps of all members that are timed, after as many to warm up."""


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
        _, _, over, _, _ = env.step(int(rng.integers(env.action_space.n)))
        if index >= warm_up:
            spent.append(time.perf_counter() - started)
        if over:  # a world may end its episodes
            env.reset()
    env.close()
    slow, middle, fast = np.percentile(1.0 / np.array(spent), [5, 50, 95])
    return {"value": float(middle), "low": float(slow), "high": float(fast)}


def vector_ratio(checkpoint: str, members: int, steps: int) -> dict[str, float]:
    """Steps a second of all members in one vector environment, of as many single ones in turn, and the ratio."""
    import gymnasium as gym
    import numpy as np

    import mosaic_gym  # noqa: F401, registers the ids

    rng = np.random.default_rng(0)
    actions = rng.integers(9, size=(2 * steps, members))
    together = gym.make_vec("MosaicWorld-v0", num_envs=members, checkpoint=checkpoint)
    together.reset(seed=0)
    singles = [gym.make("MosaicWorld-v0", checkpoint=checkpoint) for _ in range(members)]
    for i, env in enumerate(singles):
        env.reset(seed=i)
    spent = {"vector": 0.0, "in turn": 0.0}
    for index, row in enumerate(actions):
        started = time.perf_counter()
        together.step(row)
        middle = time.perf_counter()
        over = [any(env.step(int(action))[2:4]) for env, action in zip(singles, row, strict=True)]
        if index >= steps:
            spent["vector"] += middle - started
            spent["in turn"] += time.perf_counter() - middle
        for env in compress(singles, over):
            env.reset()
    for env in (together, *singles):
        env.close()
    rates = {name: members * steps / seconds for name, seconds in spent.items()}
    return {**rates, "ratio": rates["vector"] / rates["in turn"]}


def fork_cost(checkpoint: str, keyframes: int, forks: int) -> dict[str, float]:
    """Milliseconds of forking a state with so many keyframes, and megabytes that a fork adds before it diverges."""
    import tracemalloc
    from dataclasses import replace

    import gymnasium as gym

    import mosaic_gym  # noqa: F401, registers the ids

    env = gym.make("MosaicWorld-v0", checkpoint=checkpoint).unwrapped
    env.reset(seed=0)
    memory = env.state.memory
    (one,) = memory.keyframes
    each = tuple(replace(one, latent=one.latent.clone(), depth_m=one.depth_m.clone()) for _ in range(keyframes))
    many = replace(memory, keyframes=each, capacity=keyframes)
    env.episode = replace(env.episode, state=replace(env.state, memory=many))
    env.snapshot()  # the first one of a process also computes the checkpoint's fingerprint
    started = time.perf_counter()
    env.fork(forks)
    spent_ms = 1e3 * (time.perf_counter() - started)
    tracemalloc.start()
    kept = env.fork(forks)
    added = tracemalloc.get_traced_memory()[0]  # by Python; it does not see what tensors hold
    tracemalloc.stop()
    held = _storages([env.state])
    after = _storages([snapshot.episode.state for snapshot in kept])
    added += sum(size for pointer, size in after.items() if pointer not in held)
    env.close()
    return {"ms": spent_ms, "mb_each": added / 1e6 / len(kept), "state_mb": sum(held.values()) / 1e6}


def _storages(states: Sequence[WorldState]) -> dict[int, int]:
    """Bytes that the tensors of some states and their keyframes hold, by where they lie: what is shared, once."""
    import torch

    values = [value for state in states for value in vars(state).values()]
    values += [value for state in states for keyframe in state.memory.keyframes for value in vars(keyframe).values()]
    tensors = [value.untyped_storage() for value in values if isinstance(value, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


def first_frame_s(checkpoint: str) -> float:
    """Seconds from starting Python to the first frame."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_FRAME.format(checkpoint=checkpoint)], check=True)
    return time.perf_counter() - started


def evaluate(config: Config) -> dict[str, float]:
    """Prints them.

    Raises:
        ValueError: no step to time, or a negative warm-up.
    """
    import torch

    if min(config.steps, config.members, config.vector_steps) < 1 or config.warm_up < 0:
        raise ValueError("give at least 1 step and 1 member, and a warm-up of 0 or more")
    rate = steps_per_second(config.checkpoint, config.steps, config.warm_up)
    seconds = first_frame_s(config.checkpoint)
    together = vector_ratio(config.checkpoint, config.members, config.vector_steps)
    forked = fork_cost(config.checkpoint, keyframes=1000, forks=64)
    print(
        f"{config.members} members: {together['vector']:.1f} steps per second in one vector, {together['in turn']:.1f} "
        f"in turn: {together['ratio']:.2f} x (goal >= 4)"
    )
    print(
        f"fork(64) of a state with 1000 keyframes: {forked['ms']:.2f} ms (goal < 5), "
        f"{forked['mb_each']:.4f} MB a fork (goal < 1) of {forked['state_mb']:.0f} MB"
    )
    print(f"steps_per_second: {rate['value']:.1f} (goal >= 20; 5 to 95 %: {rate['low']:.1f} to {rate['high']:.1f})")
    print(f"first frame of a fresh process: {seconds:.1f} s (goal <= 12); torch threads: {torch.get_num_threads()}")
    return {
        "steps_per_second": rate["value"],
        "first_frame_s": seconds,
        "vector_ratio": together["ratio"],
        "fork_ms": forked["ms"],
        "fork_mb": forked["mb_each"],
    }
