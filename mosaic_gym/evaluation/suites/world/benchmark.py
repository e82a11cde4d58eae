"""`mosaic-gym evaluate world`: how well a world invents, and how faithful it is to what it saw and invented.

A world is given the picture, the camera and the prompt of a start on a map that it was not trained on. Its roll-outs
are compared with true walks, by figures that are calibrated on worlds whose answer is known (`--calibrate`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mosaic_gym.evaluation.suites.world.config import Config

if TYPE_CHECKING:
    from mosaic_gym.evaluation.suites.world.figures import Reference
    from mosaic_gym.evaluation.suites.world.scenes import Scene
    from mosaic_gym.evaluation.suites.world.stages import Simulation

CEILING, SECOND_CEILING = "simulator", "simulator again"
"""The simulator on other maps of the split, and on yet others."""
CODEC = "codec"
NO_NETWORK = "not applicable: the world is not a checkpoint"


def evaluate(config: Config) -> dict[str, Any]:
    """Makes what is missing, prints the tables, and writes plots, contact sheets and the JSON file.

    Raises:
        ValueError: no such checkpoint, no evaluation net, or a folder with roll-outs of another world or split.
    """
    import numpy as np

    from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
    from mosaic_gym.evaluation.net import load_evaluation_net
    from mosaic_gym.evaluation.suites.world.figures import Reference, measure
    from mosaic_gym.evaluation.suites.world.pictures import save_plot, save_sheets
    from mosaic_gym.evaluation.suites.world.rollouts import simulator_rollouts
    from mosaic_gym.evaluation.suites.world.stages import (
        OTHER_MAPS,
        Subject,
        make_rollouts,
        make_scenes,
        make_training_frames,
        simulation_of,
    )
    from mosaic_gym.evaluation.suites.world.tables import calibration_lines, figure_lines, net_line

    simulation = simulation_of(config.checkpoint, config.split)
    net, about_net = load_evaluation_net()
    scenes = make_scenes(simulation, config.out, 0, config.paths, config.workers)
    others = make_scenes(simulation, config.out, OTHER_MAPS, config.paths, config.workers)
    training = make_training_frames(simulation, config.out, config.train_maps, config.workers)
    pixels = pooled_pixels(np.concatenate([row.frames for row in training]))
    reference = Reference(scenes, pixels, net, _codec_of(config.checkpoint))
    rows: dict[str, dict[str, Any]] = {CEILING: measure(others, simulator_rollouts(others), reference)}
    pictures = others, simulator_rollouts(others)
    if config.checkpoint != CEILING:
        name = _row_name(config.checkpoint)
        subject = Subject(
            name, "learned", config.checkpoint, config.denoising_steps, config.out, simulation.control
        )  # fmt: skip
        rollouts = make_rollouts(subject, scenes, config.workers)
        rows[name] = measure(scenes, rollouts, reference)
        rows |= {name: rows[name] | _changes(config, simulation, subject, reference)}
        pictures = scenes, rollouts
    name = list(rows)[-1]
    rows[name]["steps_per_second"] = _speed(config.checkpoint)
    print(f"\n{config.checkpoint}: {config.paths} maps of {config.split}, 95 % intervals over maps")
    print(net_line(about_net))
    print("\n".join(figure_lines(rows[name], rows[CEILING])))
    results: dict[str, Any] = {
        "checkpoint": config.checkpoint, "split": config.split, "paths": config.paths,
        "evaluation_net": about_net, "figures": rows[name], "simulator": rows[CEILING],
    }  # fmt: skip
    for file in save_sheets(config.out / "pictures", *pictures):
        print(f"contact sheet: {file}")
    plot = save_plot(config.out / "pictures" / "figures.png", *pictures, rows[name], rows[CEILING])
    print(f"plot: {plot}" if plot else "no plot: it needs matplotlib, pip install 'mosaic-gym[rl]'")
    if config.calibrate:
        results |= _calibrate(config, simulation, reference, others, rows)
        print()
        print("\n".join(calibration_lines({**results["calibration"], **rows}, rows[CEILING])))
        print("\n".join(["", *results["verdicts"]]))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(results, indent=2) + "\n")
        print(f"figures: {config.json}")
    return results


def _row_name(checkpoint: str) -> str:
    """A name for a folder: the last part of the checkpoint's path."""
    return checkpoint.rstrip("/").split("/")[-1]


def _codec_of(checkpoint: str) -> Any:
    from mosaic_gym.evaluation.suites.world.known_worlds import through_codec
    from mosaic_gym.model.checkpoints import WorldModel

    return None if checkpoint == CEILING else through_codec(WorldModel.from_pretrained(checkpoint).codec)


def _speed(checkpoint: str) -> dict[str, Any]:
    """`steps_per_second`, see `mosaic-gym evaluate speed`."""
    from mosaic_gym.evaluation.speed.steps import steps_per_second

    if checkpoint == CEILING:
        return {"value": None, "low": None, "high": None, "reason": NO_NETWORK}
    return {**steps_per_second(checkpoint, steps=60, warm_up=60), "reason": None}


def _changes(config: Config, simulation: Simulation, subject: Any, reference: Reference) -> dict[str, Any]:
    """`taken_stays_gone` and `door_stays_open` of a world."""
    from mosaic_gym.evaluation.suites.world.changes import DOOR, LEAST_CASES, PICKUP, change_figure
    from mosaic_gym.evaluation.suites.world.figures import without
    from mosaic_gym.evaluation.suites.world.stages import make_change_rollouts, make_changes

    names = {"taken_stays_gone": PICKUP, "door_stays_open": DOOR}
    if config.paths < LEAST_CASES:
        why = f"{config.paths} maps give too few cases; use --paths {LEAST_CASES} or more"
        return {name: without("undefined", why) for name in names}
    figures = {}
    for name, kind in names.items():
        changes = make_changes(simulation, config.out, kind, config.paths, config.workers)
        figures[name] = change_figure(changes, make_change_rollouts(subject, changes, config.workers), reference.net)
    return figures


def _calibrate(
    config: Config,
    simulation: Simulation,
    reference: Reference,
    others: list[Scene],
    rows: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Figures of the worlds whose answer is known, and what catches them."""
    from mosaic_gym.evaluation.suites.world.calibration import catches, verdicts
    from mosaic_gym.evaluation.suites.world.figures import measure
    from mosaic_gym.evaluation.suites.world.known_worlds import blurred, changed, noisy
    from mosaic_gym.evaluation.suites.world.rollouts import simulator_rollouts
    from mosaic_gym.evaluation.suites.world.stages import CANNED, OTHER_MAPS, Subject, make_rollouts, make_scenes

    again = make_scenes(simulation, config.out, 2 * OTHER_MAPS, config.paths, config.workers)
    worlds = {CEILING: rows[CEILING], SECOND_CEILING: measure(again, simulator_rollouts(again), reference)}
    changes = {"blur": blurred, "noise": noisy}
    if reference.codec is not None:
        changes[CODEC] = reference.codec
    for name, change in changes.items():
        worlds[name] = measure(others, [changed(row, change) for row in simulator_rollouts(others)], reference)
    checkpoint = "doom-tiny" if config.checkpoint == CEILING else config.checkpoint
    subject = Subject("", "", checkpoint, None, config.out, simulation.control)
    for name in (*CANNED, "warp"):
        known = replace(subject, name=name, kind=name)
        worlds[name] = measure(reference.scenes, make_rollouts(known, reference.scenes, config.workers), reference)
    if simulation == _tiny_simulation(config.split):
        name = "doom-tiny"
        known = replace(subject, name=name, kind="learned", checkpoint=name)
        worlds[name] = rows.get(name) or measure(
            reference.scenes, make_rollouts(known, reference.scenes, config.workers), reference
        )
    caught = catches(worlds, rows[CEILING])
    lines = verdicts(caught, good={CEILING, SECOND_CEILING}, neutral={CODEC})
    return {"calibration": worlds, "caught": caught, "verdicts": lines}


def _tiny_simulation(split: str) -> Simulation:
    from mosaic_gym.evaluation.suites.world.stages import simulation_of

    return simulation_of("doom-tiny", split)
