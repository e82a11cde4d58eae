"""Imagination: many futures of a state, rolled out side by side into one TensorDict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_gym.deprecation import renamed_arguments
from mosaic_gym.geometry.control import check_action
from mosaic_gym.validation import as_float64, as_whole
from mosaic_gym.worlds.protocol import State, View, World

if TYPE_CHECKING:
    from tensordict import TensorDict

Policy = Callable[[np.ndarray], np.ndarray]
"""From the last frames, uint8 `[B, H, W, 3]`, to action vectors `[B, 3]`, each number in [-1, 1]."""


@renamed_arguments(progress="task_state")  # old spelling
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

    The given states do not change; futures share memory with them until they diverge.

    Args:
        world: a forkable one.
        state: where all futures start, or a list of B states, one for each. They have to be this world's. That is not
            checked, because a state does not name its world; futures of another checkpoint's state are meaningless.
        act: action vectors `[B, H, 3]` (forward, strafe right, turn right), or a policy.
        horizon: H, steps. May be None for an array `act`, whose shape has it.
        task: gives rewards and ends futures, by its `evaluate`. None takes the world's own reward and end, which are 0
            and False in a world without reward heads, and without pixels.
        task_state: what `task` starts from (`env.unwrapped.episode.task_state`): one for all futures of one state, and
            for a list of states a list, one for each.
        pixels: False skips what latents do not need (decoding, refinement, depth, writing to memory): for costs that
            are computed on latents or poses, over horizons in which nothing has to enter the memory.

    Returns:
        frames uint8 `[B, H, 4, h, w, 3]` (without pixels: latents `[B, H, c, h', w']` instead), pose float32
        `[B, H, 4, 4]` (world_from_camera of the last frame), coverage, reward float32 and terminated bool `[B, H]`,
        action float32 `[B, H, 3]`. A future that has ended continues, with rewards of 0.

    Raises:
        RuntimeError: the world is not forkable.
        ValueError: no horizon, a wrong shape, a policy that returns NaN or another shape, a task or a policy without
            pixels, a task that needs a task state and has none, or another number of task states than of states.
        TypeError: something that is not a state, a horizon that is not a whole number, a task without `evaluate`, or a
            world without the method that is needed.
    """
    _check_world(world, pixels, policy=callable(act))
    many = isinstance(state, Sequence) and not isinstance(state, State)
    for item in state if many else [state]:
        if not isinstance(item, State):
            raise TypeError(f"imagine starts from states, such as env.unwrapped.state; got {type(item).__name__}")
    if horizon is not None and as_whole(horizon) is None:
        raise TypeError(f"horizon is a whole number; got {horizon!r}")
    action_vectors = None if callable(act) else _check_action_vectors(act, len(state) if many else None, horizon)
    horizon = _check_horizon(horizon, action_vectors)
    _check_task(task, pixels)
    if action_vectors is None and not pixels:
        raise ValueError("a policy looks at frames: imagine with pixels=True, or pass action vectors [B, H, 3]")
    count = len(state) if many else 1 if action_vectors is None else len(action_vectors)
    states = list(state) if many else [state] * count
    if not states:
        raise ValueError("imagine needs at least one state")
    task_states = _task_states(task, task_state, count, many)
    frames = None if action_vectors is not None else np.stack([world.current_frame(state) for state in states])
    rows, ended = [], np.zeros(count, dtype=bool)
    for step in range(horizon):
        actions = action_vectors[:, step] if action_vectors is not None else _policy_actions(act, frames, count)
        if pixels:
            states, views = world.step(states, actions)
            frames = np.stack([view.frames[-1] for view in views])
        else:
            states, views = world.step_latents(states, actions)
        rewards, ends = _evaluate(task, task_states, views, ended)
        ended = ended | ends
        rows.append(_row(states, views, actions, rewards, ended.copy(), pixels))
    return _stack(rows, count, horizon, getattr(world, "device", None))


def _check_world(world: World, pixels: bool, policy: bool) -> None:
    if not world.forkable:
        raise RuntimeError(
            f"{type(world).__name__} cannot go back to an earlier state, so it cannot imagine: pass the learned world"
        )
    needed = "step" if pixels and not policy else "current_frame" if pixels else "step_latents"
    if not callable(getattr(world, needed, None)):
        raise TypeError(
            f"{type(world).__name__} has no {needed}(): imagining with "
            f"{'a policy' if pixels else 'pixels=False'} needs one, as MosaicWorld has it"
        )


def _check_horizon(horizon: int | None, action_vectors: np.ndarray | None) -> int:
    if horizon is None and action_vectors is None:
        raise ValueError("a policy needs a horizon: how many steps to imagine")
    horizon = action_vectors.shape[1] if horizon is None else int(horizon)
    if horizon < 1:
        raise ValueError(f"horizon is at least 1 step; got {horizon}")
    return horizon


def _check_task(task: Any, pixels: bool) -> None:
    if task is not None and not callable(getattr(task, "evaluate", None)):
        raise TypeError(f"a task is an object with evaluate(), such as env.unwrapped.task; got {task!r}")
    if task is not None and not pixels:
        raise ValueError("a task evaluates views: imagine with pixels=True, or compute the cost from the latents")


def _task_states(task: Any, task_state: Any, count: int, many: bool) -> list[Any]:
    """The task state of each future at its start."""
    if task_state is None and getattr(task, "needs_task_state", False):
        raise ValueError(
            f"{type(task).__name__} needs the episode's task state: pass task_state="
            f"{'[episode.task_state for each state]' if many else 'env.unwrapped.episode.task_state'}"
        )
    if task_state is None or not many:
        return [task_state] * count
    if not isinstance(task_state, list | tuple) or len(task_state) != count:
        got = f"{len(task_state)}" if isinstance(task_state, list | tuple) else f"a {type(task_state).__name__}"
        raise ValueError(f"{count} states take {count} task states, a list with one for each; got {got}")
    return list(task_state)


def _check_action_vectors(act: Any, states: int | None, horizon: int | None) -> np.ndarray:
    action_vectors = as_float64(act)
    if action_vectors.ndim != 3 or action_vectors.shape[-1] != 3 or 0 in action_vectors.shape:
        raise ValueError(f"actions are action vectors [B, H, 3], B and H at least 1; got shape {action_vectors.shape}")
    if states is not None and len(action_vectors) != states:
        raise ValueError(f"{states} states take actions [{states}, H, 3]; got shape {action_vectors.shape}")
    if horizon is not None and action_vectors.shape[1] != horizon:
        raise ValueError(f"actions are for {action_vectors.shape[1]} steps, and horizon is {horizon}")
    return np.stack([[check_action(action) for action in row] for row in action_vectors])


def _policy_actions(policy: Policy, frames: np.ndarray, count: int) -> np.ndarray:
    actions = as_float64(policy(frames))
    if actions.shape != (count, 3):
        raise ValueError(f"for {count} frames the policy returned shape {actions.shape}; action vectors are [B, 3]")
    return np.stack([check_action(action) for action in actions])


def _evaluate(
    task: Any, task_states: list[Any], views: Sequence[Any], ended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and ends of this step; `task_states` is updated in place."""
    rewards, ends = np.zeros(len(views), dtype=np.float32), np.zeros(len(views), dtype=bool)
    for i, view in enumerate(views):
        if ended[i] or not isinstance(view, View):  # an observation in latents alone has neither
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
    views: Sequence[Any],
    actions: np.ndarray,
    rewards: np.ndarray,
    ended: np.ndarray,
    pixels: bool,
) -> dict[str, Any]:
    import torch

    if pixels:
        pictures = torch.from_numpy(np.stack([view.frames for view in views]))
    else:
        pictures = torch.stack([observation.latent for observation in views])
    return {
        "frames" if pixels else "latents": pictures,
        "pose": torch.from_numpy(np.stack([state.pose.world_from_camera for state in states]).astype(np.float32)),
        "coverage": torch.tensor([view.coverage for view in views], dtype=torch.float32, device="cpu"),
        "reward": torch.from_numpy(rewards),
        "terminated": torch.from_numpy(ended),
        "action": torch.tensor(actions, dtype=torch.float32, device="cpu"),
    }


def _stack(rows: list[dict[str, Any]], count: int, horizon: int, device: Any) -> TensorDict:
    import torch
    from tensordict import TensorDict

    # Each tensor goes to the device in one piece, not step by step.
    stacked = {name: torch.stack([row[name] for row in rows], dim=1).to(device) for name in rows[0]}
    return TensorDict(stacked, batch_size=[count, horizon], device=device)
