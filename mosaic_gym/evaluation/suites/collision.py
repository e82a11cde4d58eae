"""Where the learned world stops the camera at walls, in view or never seen, compared with the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    from mosaic_gym.worlds.doom import DoomWorld
    from mosaic_gym.worlds.mosaic import MosaicWorld

FIRST_SEED = 2_000_009
"""First seed of the simulator's episodes. Seeds end in 9, so they are held out."""
LOOK_STEPS, WALK_STEPS = 6, 14
"""Steps of turning around before a walk without observations, and steps of walking."""
STOPPED_M, FREE_M = 0.1, 0.02
"""The simulator stopped the camera if free motion would end at least the first distance away from its pose, and did not
if free motion ends within the second distance of it."""


@dataclass(frozen=True)
class Config:
    """Measure where walls stop the body in the learned world, compared with the simulator."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: Annotated[int, Whole(2)] = 12
    """Held-out walks of 14 steps, for each direction: forward with observations, backward and left without."""

    def __post_init__(self) -> None:
        validate(self, option)


@dataclass
class PositionErrors:
    """Distances between the simulator's position after a step and a predicted one, metres, one for each step.

    Attributes:
        stopped: of the learned world, on steps on which something stood in the way.
        without_collision: of free motion, on the same steps.
        free: of the learned world, on steps on which the camera moved and nothing stood in the way.
    """

    stopped: list[float] = field(default_factory=list)
    without_collision: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)


def walk(
    learned: MosaicWorld, simulator: DoomWorld, seeds: Sequence[int], action: str, observing: bool
) -> PositionErrors:
    """Walks against walls in the simulator and compares each step with the learned world's prediction of it.

    Args:
        seeds: of the simulator's episodes, one walk each.
        action: the one of `ACTIONS` that is repeated.
        observing: whether the learned world observes the simulator's frames while walking. Otherwise it observes a look
            around first, and nothing during the walk.
    """
    from dataclasses import replace

    import numpy as np

    from mosaic_gym.geometry.control import ACTIONS, Pose
    from mosaic_gym.worlds.protocol import Start

    errors = PositionErrors()
    for seed in seeds:
        true_state, view = simulator.start(Start(seed=seed))
        state = learned.start_from_frames(view.frames, [Pose(camera) for camera in view.world_from_camera], seed, "")
        for index in range(WALK_STEPS if observing else LOOK_STEPS + WALK_STEPS):
            walking = observing or index >= LOOK_STEPS
            action_vector = np.array(ACTIONS[action if walking else "turn_right"])
            state, before_m = replace(state, pose=true_state.pose), true_state.pose.world_from_camera[:3, 3]
            predicted = learned.advance([state], action_vector[None])[0][-1]
            free = learned.control.advance(true_state.pose, action_vector)[-1]
            (true_state,), (view,) = simulator.step([true_state], action_vector[None])
            after_m = view.world_from_camera[-1, :3, 3]
            error_m, free_error_m = (
                float(np.linalg.norm(pose.world_from_camera[:3, 3] - after_m)) for pose in (predicted, free)
            )
            if free_error_m >= STOPPED_M:
                errors.stopped.append(error_m)
                errors.without_collision.append(free_error_m)
            elif free_error_m < FREE_M and np.linalg.norm(after_m - before_m) > STOPPED_M:
                errors.free.append(error_m)
            if observing or not walking:
                state = learned.observe(state, view.frames, [Pose(camera) for camera in view.world_from_camera])
    return errors


def evaluate(config: Config) -> dict[str, dict[str, float]]:
    """Prints the figures, by whether the wall was in view, and by what the learned world uses."""
    from itertools import product

    from tqdm import tqdm

    from mosaic_gym.evaluation.suites.paths import simulator_of
    from mosaic_gym.model.checkpoints import WorldModel
    from mosaic_gym.worlds.mosaic import MosaicWorld

    model = WorldModel.from_pretrained(config.checkpoint)
    variants = {"memory and map": MosaicWorld(model), "memory alone": MosaicWorld(model, atlas=False)}
    simulator = simulator_of(model.settings)
    seeds, figures = range(FIRST_SEED, FIRST_SEED + 10 * config.paths, 10), {}
    directions = [("forward", True), ("backward", False), ("left", False)]
    for (action, observing), name in tqdm(list(product(directions, variants)), desc="walking", unit="direction"):
        kind = f"{action}, {'seen' if observing else 'never seen'}, {name}"
        figures[kind] = _summarize(walk(variants[name], simulator, seeds, action, observing))
    simulator.close()
    for kind, figure in figures.items():
        print(
            f"{kind:<38} off by {figure['stopped']:.3f} m at {figure['steps']} stops ({figure['without_collision']:.3f}"
            f" without collisions); wrongly stopped: {figure['wrongly_stopped']:.1%} of {figure['free_steps']} free "
            "steps"
        )
    return figures


def _summarize(errors: PositionErrors) -> dict[str, float]:
    import numpy as np

    return {
        "stopped": float(np.mean(errors.stopped)),
        "without_collision": float(np.mean(errors.without_collision)),
        "steps": len(errors.stopped),
        "wrongly_stopped": float(np.mean(np.array(errors.free) > STOPPED_M)),
        "free_steps": len(errors.free),
    }
