"""Imagination: many futures of a state, rolled out side by side into one TensorDict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_gym.geometry.control import check_action
from mosaic_gym.validation import is_whole
from mosaic_gym.worlds.protocol import State, View, World

if TYPE_CHECKING:
    from tensordict import TensorDict

Policy = Callable[[np.ndarray], np.ndarray]
"""From the last frames, uint8 `[B, H, W, 3]`, to thrusts `[B, 3]`, each in [-1, 1]."""


def imagine(
    world: World,
    state: State | Sequence[State],
    act: np.ndarray | Policy,
    horizon: int | None = None,
    *,
    task: Any = None,
    task_state: Any = None,
    pixels: bool = True,
) -> TensorDict:
    """Futures of one state, or of several, as a TensorDict of batch size [B, H].

    The given states stay as they were; futures share memory with them until they diverge.

    Args:
        world: a forkable one.
        state: where all futures begin, or a list of B states, one for each. They are this world's: that is not checked,
            for a state does not know its world, and one of another checkpoint's is imagined on to nonsense.
        act: thrusts `[B, H, 3]` (forward, strafe right, turn right), or a policy.
        horizon: H, steps. May be None where `act` is an array, which has its own.
        task: pays rewards and ends futures, by its `judge`; None passes on the world's own, where it predicts them and
            pixels are shown, and else pays nothing.
        progress: what the task remembers at the beginning (`env.unwrapped.episode.progress`): one for all futures of
            one state, and of a list of states a list, one for each.
        pixels: False skips what the latents do not need (decoding, detail, depth, writing to memory): for costs that
            are computed on latents or poses, over horizons too short to forget.

    Returns:
        frames uint8 `[B, H, 4, h, w, 3]` (latents `[B, H, c, h', w']` instead, without pixels), pose float32
        `[B, H, 4, 4]` (world_from_camera of the last frame), coverage, reward float32 and terminated bool `[B, H]`,
        action float32 `[B, H, 3]`. After a future has ended it goes on being shown, and is paid nothing.

    Raises:
        RuntimeError: the world has one true present.
        ValueError: no horizon, a wrong shape, a policy that returns NaN or another shape, a task or a policy without
            pixels, or a task that remembers without what it does, or of another number of states.
        TypeError: a state that is none, a horizon that is no whole number, a task that judges nothing, or a world that
            cannot do what is asked for.
    """
    if not world.forkable:
        raise RuntimeError(f"{type(world).__name__} has one true present and cannot imagine; give the learned world")
    needed = "step" if pixels and not callable(act) else "look" if pixels else "foresee"
    if not callable(getattr(world, needed, None)):
        raise TypeError(
            f"{type(world).__name__} has no {needed}(): imagining with "
            f"{'a policy' if pixels else 'pixels=False'} needs one, as MosaicWorld has it"
        )
    many = isinstance(state, Sequence) and not isinstance(state, State)
    for each in state if many else [state]:
        if not isinstance(each, State):
            raise TypeError(f"imagine begins from states, such as env.unwrapped.state; got {type(each).__name__}")
    if horizon is not None:
        check_whole("horizon", horizon)
    action_vectors = None if callable(act) else _check_action_vectors(act, len(state) if many else None, horizon)
    if action_vectors is None and horizon is None:
        raise ValueError("a policy needs a horizon: how many steps to imagine")
    horizon = action_vectors.shape[1] if horizon is None else horizon
    if horizon < 1:
        raise ValueError(f"horizon is at least 1 step; got {horizon}")
    if task is not None and not callable(getattr(task, "judge", None)):
        raise TypeError(f"a task is an object that judges views, such as env.unwrapped.task; got {task!r}")
    if action_vectors is None and not pixels:
        raise ValueError("a policy looks at frames: imagine with pixels=True, or give thrusts [B, H, 3]")
    if task is not None and not pixels:
        raise ValueError("a task judges what is seen: imagine with pixels=True, or compute the cost from the latents")
    count = len(state) if many else 1 if action_vectors is None else len(action_vectors)
    states = list(state) if many else [state] * count
    if not states:
        raise ValueError("imagine needs at least one state")
    task_states = _task_states(task, task_state, count, many)
    frames = None if action_vectors is not None else np.stack([world.look(state) for state in states])
    kept, ended = [], np.zeros(count, dtype=bool)
    for step in range(horizon):
        taken = action_vectors[:, step] if action_vectors is not None else _ask(act, frames, count)
        if pixels:
            states, shown = world.step(states, taken)
            frames = np.stack([view.frames[-1] for view in shown])
        else:
            states, shown = world.foresee(states, taken)
        rewards, ends = _evaluate(task, task_states, shown, ended)
        ended = ended | ends
        kept.append(_row(states, shown, taken, rewards, ended.copy(), pixels))
    return _stack(kept, count, horizon, getattr(world, "device", None))


def check_whole(name: str, value: object) -> None:
    """Raises TypeError unless a value is a whole number; True and False are none."""
    if not is_whole(value):
        raise TypeError(f"{name} is a whole number; got {value!r}")


def _task_states(task: Any, task_state: Any, count: int, many: bool) -> list[Any]:
    """What the task remembers of each future's past."""
    if task_state is None and getattr(task, "remembers", False):
        raise ValueError(
            f"{type(task).__name__} judges by what it remembers of the episode: give progress="
            f"{'[episode.task_state for each state]' if many else 'env.unwrapped.episode.progress'}"
        )
    if task_state is None or not many:
        return [task_state] * count
    if not isinstance(task_state, list | tuple) or len(task_state) != count:
        found = f"{len(task_state)}" if isinstance(task_state, list | tuple) else f"a {type(task_state).__name__}"
        raise ValueError(f"{count} states have {count} progresses, a list with one for each; got {found}")
    return list(task_state)


def _check_action_vectors(act: Any, states: int | None, horizon: int | None) -> np.ndarray:
    action_vectors = np.asarray(act, dtype=np.float64)
    if action_vectors.ndim != 3 or action_vectors.shape[-1] != 3 or 0 in action_vectors.shape:
        raise ValueError(f"actions are thrusts [B, H, 3], B and H at least 1; got shape {action_vectors.shape}")
    if states is not None and len(action_vectors) != states:
        raise ValueError(f"{states} states take actions [{states}, H, 3]; got shape {action_vectors.shape}")
    if horizon is not None and action_vectors.shape[1] != horizon:
        raise ValueError(f"actions are for {action_vectors.shape[1]} steps, the horizon says {horizon}")
    return np.stack([[check_action(action) for action in row] for row in action_vectors])


def _ask(policy: Policy, frames: np.ndarray, count: int) -> np.ndarray:
    taken = np.asarray(policy(frames), dtype=np.float64)
    if taken.shape != (count, 3):
        raise ValueError(f"the policy was shown {count} frames and returned shape {taken.shape}; thrusts are [B, 3]")
    return np.stack([check_action(action) for action in taken])


def _evaluate(
    task: Any, task_states: list[Any], shown: Sequence[Any], ended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and ends of this step; progress moves on in place."""
    rewards, ends = np.zeros(len(shown), dtype=np.float32), np.zeros(len(shown), dtype=bool)
    for i, view in enumerate(shown):
        if ended[i] or not isinstance(view, View):  # a glimpse in latents alone says nothing of either
            continue
        if task is None:
            rewards[i], ends[i] = view.reward, view.terminated
        else:
            task_step = task.evaluate(task_states[i], view)
            task_states[i] = task_step.task_state
            rewards[i], ends[i] = task_step.reward, task_step.terminated or view.terminated
    return rewards, ends


def _row(
    states: Sequence[State],
    shown: Sequence[Any],
    taken: np.ndarray,
    rewards: np.ndarray,
    ended: np.ndarray,
    pixels: bool,
) -> dict[str, Any]:
    import torch

    if pixels:
        seen = torch.from_numpy(np.stack([view.frames for view in shown]))
    else:
        seen = torch.stack([observation.latent for observation in shown])
    return {
        "frames" if pixels else "latents": seen,
        "pose": torch.tensor(np.stack([state.pose.world_from_camera for state in states]), dtype=torch.float32),
        "coverage": torch.tensor([one.coverage for one in shown], dtype=torch.float32),
        "reward": torch.from_numpy(rewards),
        "terminated": torch.from_numpy(ended),
        "action": torch.tensor(taken, dtype=torch.float32),
    }


def _stack(kept: list[dict[str, Any]], count: int, horizon: int, device: Any) -> TensorDict:
    import torch
    from tensordict import TensorDict

    # Each goes to the device in one piece, and not step by step.
    stacked = {name: torch.stack([row[name] for row in kept], dim=1).to(device) for name in kept[0]}
    return TensorDict(stacked, batch_size=[count, horizon], device=device)
