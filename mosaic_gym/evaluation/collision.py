"""Where the dream's body stops, against the engine: at walls it sees, and at walls that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic_gym.worlds.doom import DoomWorld
    from mosaic_gym.worlds.mosaic import MosaicWorld

FIRST_SEED = 2_000_009
"""Of the engine's episodes, which end in 9: held out."""
LOOKS, STEPS = 6, 14
"""Steps of turning around, for a body that then walks with its eyes shut; and of walking."""
STOPPED_M, FREE_M = 0.1, 0.02
"""A body that nothing stops would be off by so much or more where something stood in the way; by less, nothing did."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate collision` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: int = 12
    """Held-out walks, each of 14 steps, forward and with eyes shut backward and to the left."""


@dataclass
class Walks:
    """How far off the engine's is where the dream's body ends, metres, step by step.

    Attributes:
        stopped: where something stood in the way; walked_through: the same for a body that nothing stops.
        free: where nothing did, and the body moved.
    """

    stopped: list[float] = field(default_factory=list)
    walked_through: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)


def walk(dream: MosaicWorld, engine: DoomWorld, seeds: Sequence[int], action: str, watching: bool) -> Walks:
    """Walks in the engine, against walls, each step of which the dream foresees.

    Args:
        seeds: of the engine's episodes, a walk each.
        action: the one of `ACTIONS` that they repeat.
        watching: whether it sees where it goes; else it looks around first, and walks with its eyes shut.
    """
    from dataclasses import replace

    import numpy as np

    from mosaic_gym.geometry.control import ACTIONS, Pose
    from mosaic_gym.worlds.protocol import Start

    told = Walks()
    for seed in seeds:
        body, view = engine.start(Start(seed=seed))
        state = dream.begin(view.frames, [Pose(camera) for camera in view.world_from_camera], seed, "")
        for index in range(STEPS if watching else LOOKS + STEPS):
            walks = watching or index >= LOOKS
            action_vector = np.array(ACTIONS[action if walks else "turn_right"])
            state, before_m = replace(state, pose=body.pose), body.pose.world_from_camera[:3, 3]
            foreseen, free = (
                dream.move([state], action_vector[None])[0][-1],
                dream.control.advance(body.pose, action_vector)[-1],
            )
            (body,), (view,) = engine.step([body], action_vector[None])
            there_m = view.world_from_camera[-1, :3, 3]
            off_m, free_off_m = (float(np.linalg.norm(p.world_from_camera[:3, 3] - there_m)) for p in (foreseen, free))
            if free_off_m >= STOPPED_M:
                told.stopped.append(off_m)
                told.walked_through.append(free_off_m)
            elif free_off_m < FREE_M and np.linalg.norm(there_m - before_m) > STOPPED_M:
                told.free.append(off_m)
            if watching or not walks:
                state = dream.observe(state, view.frames, [Pose(camera) for camera in view.world_from_camera])
    return told


def evaluate(config: Config) -> dict[str, dict[str, float]]:
    """Prints the figures, by whether the wall was seen, and by what the dream knows.

    Raises:
        ValueError: fewer than two walks.
    """
    from itertools import product

    from tqdm import tqdm

    from mosaic_gym.evaluation.paths import simulator_of
    from mosaic_gym.model.checkpoints import WorldModel
    from mosaic_gym.worlds.mosaic import MosaicWorld

    if config.paths < 2:
        raise ValueError("give at least 2 paths")
    model = WorldModel.from_pretrained(config.checkpoint)
    dreams = {"memory and map": MosaicWorld(model), "memory alone": MosaicWorld(model, atlas=False)}
    engine = simulator_of(model.settings)
    seeds, figures = range(FIRST_SEED, FIRST_SEED + 10 * config.paths, 10), {}
    ways = [("forward", True), ("backward", False), ("left", False)]
    for (action, watching), name in tqdm(list(product(ways, dreams)), desc="walking", unit="way"):
        kind = f"{action}, {'seen' if watching else 'never seen'}, {name}"
        figures[kind] = _figure(walk(dreams[name], engine, seeds, action, watching))
    engine.close()
    for kind, figure in figures.items():
        print(
            f"{kind:<38} off by {figure['stopped']:.3f} m at {figure['steps']} stops ({figure['walked_through']:.3f} "
            f"if nothing stopped it); held up for no reason: {figure['held_up']:.1%} of {figure['free_steps']} free "
            "steps"
        )
    return figures


def _figure(told: Walks) -> dict[str, float]:
    import numpy as np

    return {
        "stopped": float(np.mean(told.stopped)),
        "walked_through": float(np.mean(told.walked_through)),
        "steps": len(told.stopped),
        "held_up": float(np.mean(np.array(told.free) > STOPPED_M)),
        "free_steps": len(told.free),
    }
