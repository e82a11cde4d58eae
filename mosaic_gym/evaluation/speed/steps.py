"""Speed of the environment: steps alone and in a vector, the cost of forks, and the time to the first frame."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated

from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    from mosaic_gym.worlds.state import WorldState

FIRST_FRAME = "import gymnasium as gym, mosaic_gym; gym.make('MosaicWorld-v0', checkpoint={checkpoint!r}).reset(seed=0)"


@dataclass(frozen=True)
class Config:
    """Measure environment steps per second, the cost of forks, and the time to the first frame."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    steps: Annotated[int, Whole(1)] = 120
    """Environment steps that are timed."""
    warm_up: Annotated[int, Whole(0)] = 60
    """Steps before the timed ones, which fill the memory."""
    members: Annotated[int, Whole(1)] = 16
    """Members of the vector environment."""
    vector_steps: Annotated[int, Whole(1)] = 12
    """Steps of all members that are timed, after as many for warm-up."""

    def __post_init__(self) -> None:
        validate(self, option)


def steps_per_second(checkpoint: str, steps: int, warm_up: int) -> dict[str, float]:
    """Steps (four frames each) a second of one environment through `gym.make`: median, 5th and 95th percentile.

    Returns:
        `value`, `low`, `high`.
    """
    import gymnasium as gym
    import numpy as np

    import mosaic_gym  # noqa: F401, registers the ids

    env = gym.make("MosaicWorld-v0", checkpoint=checkpoint, max_episode_steps=warm_up + steps + 1)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    seconds = []
    for index in range(warm_up + steps):
        started = time.perf_counter()
        _, _, terminated, _, _ = env.step(int(rng.integers(env.action_space.n)))
        if index >= warm_up:
            seconds.append(time.perf_counter() - started)
        if terminated:
            env.reset()
    env.close()
    low, median, high = np.percentile(1.0 / np.array(seconds), [5, 50, 95])
    return {"value": float(median), "low": float(low), "high": float(high)}


def vector_speed(checkpoint: str, members: int, steps: int) -> dict[str, float]:
    """Steps a second of all members, in one vector environment and as single environments one after the other.

    Returns:
        `vector` and `sequential`, steps a second, and their `ratio`.
    """
    import gymnasium as gym
    import numpy as np

    import mosaic_gym  # noqa: F401, registers the ids

    rng = np.random.default_rng(0)
    actions = rng.integers(9, size=(2 * steps, members))
    vector = gym.make_vec("MosaicWorld-v0", num_envs=members, checkpoint=checkpoint)
    vector.reset(seed=0)
    singles = [gym.make("MosaicWorld-v0", checkpoint=checkpoint) for _ in range(members)]
    for i, env in enumerate(singles):
        env.reset(seed=i)
    seconds = {"vector": 0.0, "sequential": 0.0}
    for index, row in enumerate(actions):
        started = time.perf_counter()
        vector.step(row)
        middle = time.perf_counter()
        ended = [any(env.step(int(action))[2:4]) for env, action in zip(singles, row, strict=True)]
        if index >= steps:
            seconds["vector"] += middle - started
            seconds["sequential"] += time.perf_counter() - middle
        for env in compress(singles, ended):
            env.reset()
    for env in (vector, *singles):
        env.close()
    rates = {name: members * steps / spent for name, spent in seconds.items()}
    return {**rates, "ratio": rates["vector"] / rates["sequential"]}


def fork_cost(checkpoint: str, keyframes: int, forks: int) -> dict[str, float]:
    """Cost of forking a state with some number of keyframes.

    Returns:
        `ms`: milliseconds for all forks. `mb_per_fork`: megabytes that a fork adds before it diverges. `state_mb`: size
        of the state.
    """
    import tracemalloc
    from dataclasses import replace

    import gymnasium as gym

    import mosaic_gym  # noqa: F401, registers the ids

    env = gym.make("MosaicWorld-v0", checkpoint=checkpoint).unwrapped
    env.reset(seed=0)
    memory = env.state.memory
    (first,) = memory.keyframes
    copies = tuple(replace(first, latent=first.latent.clone(), depth_m=first.depth_m.clone()) for _ in range(keyframes))
    full_memory = replace(memory, keyframes=copies, capacity=keyframes)
    env.episode = replace(env.episode, state=replace(env.state, memory=full_memory))
    env.snapshot()  # the first snapshot of a process also computes the checkpoint's fingerprint
    started = time.perf_counter()
    env.fork(forks)
    spent_ms = 1e3 * (time.perf_counter() - started)
    tracemalloc.start()
    snapshots = env.fork(forks)
    added = tracemalloc.get_traced_memory()[0]  # Python's objects only; tensors are counted below
    tracemalloc.stop()
    original = _storage_bytes([env.state])
    forked = _storage_bytes([snapshot.episode.state for snapshot in snapshots])
    added += sum(size for pointer, size in forked.items() if pointer not in original)
    env.close()
    state_mb = sum(original.values()) / 1e6
    return {"ms": spent_ms, "mb_per_fork": added / 1e6 / len(snapshots), "state_mb": state_mb}


def _storage_bytes(states: Sequence[WorldState]) -> dict[int, int]:
    """Sizes in bytes of the storages of all tensors in some states, by address, so that shared storages count once."""
    import torch

    values = [value for state in states for value in vars(state).values()]
    values += [value for state in states for keyframe in state.memory.keyframes for value in vars(keyframe).values()]
    storages = [value.untyped_storage() for value in values if isinstance(value, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def first_frame_s(checkpoint: str) -> float:
    """Seconds from the start of a Python process to the first frame."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_FRAME.format(checkpoint=checkpoint)], check=True)
    return time.perf_counter() - started


def evaluate(config: Config) -> dict[str, float]:
    """Prints all speeds, with their goals."""
    import torch

    rate = steps_per_second(config.checkpoint, config.steps, config.warm_up)
    seconds = first_frame_s(config.checkpoint)
    vector = vector_speed(config.checkpoint, config.members, config.vector_steps)
    fork = fork_cost(config.checkpoint, keyframes=1000, forks=64)
    print(
        f"{config.members} members: {vector['vector']:.1f} steps per second in one vector, {vector['sequential']:.1f} "
        f"one after the other: {vector['ratio']:.2f} x (goal >= 4)"
    )
    print(
        f"fork(64) of a state with 1000 keyframes: {fork['ms']:.2f} ms (goal < 5), "
        f"{fork['mb_per_fork']:.4f} MB a fork (goal < 1) of {fork['state_mb']:.0f} MB"
    )
    print(f"steps_per_second: {rate['value']:.1f} (goal >= 20; 5 to 95 %: {rate['low']:.1f} to {rate['high']:.1f})")
    print(f"first frame of a fresh process: {seconds:.1f} s (goal <= 12); torch threads: {torch.get_num_threads()}")
    return {
        "steps_per_second": rate["value"],
        "first_frame_s": seconds,
        "vector_ratio": vector["ratio"],
        "fork_ms": fork["ms"],
        "fork_mb": fork["mb_per_fork"],
    }
