"""`mosaic-gym evaluate world`: how well a world invents, and how faithful it is to what it saw and invented.

A world is given the picture, the camera and the prompt of a start on a map that it was not trained on. Its roll-outs
are compared with true walks, by figures that are calibrated on worlds whose answer is known (`--calibrate`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
from mosaic_gym.evaluation.net import EvaluationNet
from mosaic_gym.evaluation.suites.world.calibration import catches, verdicts
from mosaic_gym.evaluation.suites.world.changes import DOOR, LEAST_CASES, PICKUP, change_figure, true_change_rollout
from mosaic_gym.evaluation.suites.world.config import Config
from mosaic_gym.evaluation.suites.world.faithfulness import TrueWalks
from mosaic_gym.evaluation.suites.world.figures import measure, without
from mosaic_gym.evaluation.suites.world.known_worlds import blurred, changed, noisy
from mosaic_gym.evaluation.suites.world.reference import EVERY, DistributionFeatures, Reference, recorded_pixels
from mosaic_gym.evaluation.suites.world.rollouts import Rollout, simulator_rollouts
from mosaic_gym.evaluation.suites.world.stages import (
    CANNED,
    OTHER_MAPS,
    SCENE_VERSION,
    Simulation,
    Subject,
    fingerprint_of,
    make_change_rollouts,
    make_changes,
    make_rollouts,
    make_scenes,
    make_training_frames,
    simulation_of,
)

CEILING, SECOND_CEILING = "simulator", "simulator again"
"""The simulator on other maps of the split, and on yet others."""
CODEC = "codec"
FIGURE_VERSION = 1
"""Version of the figures' definitions: figures of another version are computed again."""
WHITENING_FRAMES = 4000
"""Most training frames by which the features of `frechet_ratio` are whitened."""
NO_NETWORK = "not applicable: the world is not a checkpoint"


def evaluate(config: Config) -> dict[str, Any]:
    """Makes what is missing, prints the tables, and writes plots, contact sheets and the JSON file.

    Raises:
        ValueError: no such checkpoint, no evaluation net, or a folder with roll-outs of another world or split.
        FileNotFoundError: no recording in the folder that is given.
    """
    from mosaic_gym.evaluation.net import load_evaluation_net
    from mosaic_gym.evaluation.suites.world.pictures import save_plot, save_sheets
    from mosaic_gym.evaluation.suites.world.tables import calibration_lines, figure_lines, net_line

    simulation = simulation_of(config.checkpoint, config.split)
    net, about_net = load_evaluation_net()
    reference = _reference(config, simulation, net)
    bench = Bench(config, simulation, reference, about_net["fingerprint"])
    others = TrueWalks(make_scenes(simulation, config.out, OTHER_MAPS, config.paths, config.workers))
    figures = bench.row(CEILING, others, simulator_rollouts(others.scenes), fingerprint="simulator")
    rows = {CEILING: figures | bench.changes(None)}
    pictures = others.scenes, simulator_rollouts(others.scenes)
    if config.checkpoint != CEILING:
        name = _row_name(config.checkpoint)
        subject = bench.subject(name, "learned", config.checkpoint, config.denoising_steps)
        rollouts = make_rollouts(subject, reference.scenes, config.workers)
        figures = bench.row(name, bench.own, rollouts, fingerprint_of(subject))
        rows[name] = figures | bench.changes(subject)
        pictures = reference.scenes, rollouts
    name = list(rows)[-1]
    rows[name]["steps_per_second"] = _speed(config.checkpoint)
    print(f"\n{config.checkpoint}: {config.paths} maps of {config.split}, 95 % intervals over maps")
    print(net_line(about_net))
    print("\n".join(figure_lines(rows[name], rows[CEILING])))
    results: dict[str, Any] = {
        "checkpoint": config.checkpoint, "split": config.split, "paths": config.paths,
        "evaluation_net": about_net, "figures": rows[name], "simulator": rows[CEILING],
    }  # fmt: skip
    _save(config, results)
    for file in save_sheets(config.out / "pictures", *pictures):
        print(f"contact sheet: {file}")
    plot = save_plot(config.out / "pictures" / "figures.png", *pictures, rows[name], rows[CEILING])
    print(f"plot: {plot}" if plot else "no plot: it needs matplotlib, pip install 'mosaic-gym[rl]'")
    if config.calibrate:
        results |= _calibrate(bench, others, rows)
        print()
        print("\n".join(calibration_lines({**results["calibration"], **rows}, rows[CEILING])))
        print("\n".join(["", *results["verdicts"]]))
        _save(config, results)
    if config.json is not None:
        print(f"figures: {config.json}")
    return results


def _reference(config: Config, simulation: Simulation, net: EvaluationNet) -> Reference:
    """The true scenes of the split, and the training frames."""
    scenes = make_scenes(simulation, config.out, 0, config.paths, config.workers)
    training = make_training_frames(simulation, config.out, config.train_maps, config.workers)
    frames = np.concatenate([row.frames for row in training])
    pixels = pooled_pixels(frames)
    if config.recording is not None:
        pixels = np.concatenate([pixels, recorded_pixels(config.recording, simulation.size)])
    distribution = DistributionFeatures(net, frames[::EVERY][:WHITENING_FRAMES])
    return Reference(scenes, pixels, net, distribution, _codec_of(config.checkpoint))


def _save(config: Config, results: dict[str, Any]) -> None:
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(results, indent=2) + "\n")


@dataclass(frozen=True)
class Bench:
    """One evaluation: its options, the truth, and the figures that an interrupted run has left.

    Attributes:
        config: the options.
        simulation: of the true scenes.
        reference: the true data.
        net: fingerprint of the evaluation net.
    """

    config: Config
    simulation: Simulation
    reference: Reference
    net: str

    @cached_property
    def own(self) -> TrueWalks:
        """The scenes that learned and canned worlds are rolled out on."""
        return TrueWalks(self.reference.scenes)

    def subject(self, name: str, kind: str, checkpoint: str, denoising_steps: int | None = None) -> Subject:
        """A world under test."""
        return Subject(name, kind, checkpoint, denoising_steps, self.config.out, self.simulation.control)

    def row(
        self,
        name: str,
        truth: TrueWalks,
        rollouts: Sequence[Rollout],
        fingerprint: str,
        same_depth: dict[str, Any] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """The figures of a world, from a file if an earlier run of the same command has computed them."""
        file = self.config.out / "figures" / f"{name}.json"
        origin = {
            "version": FIGURE_VERSION, "scenes": SCENE_VERSION, "world": fingerprint, "net": self.net,
            "paths": self.config.paths, "training": len(self.reference.training), "split": self.config.split,
            "codec": self.config.checkpoint,
        }  # fmt: skip
        if file.is_file():
            known = json.loads(file.read_text())
            if known["origin"] == origin:
                return known["figures"]
        started = time.perf_counter()
        print(f"figures of {name}: {len(rollouts)} maps", flush=True)
        figures = measure(truth, rollouts, self.reference, same_depth)
        print(f"figures of {name}: {time.perf_counter() - started:.0f} s", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"origin": origin, "figures": figures}) + "\n")
        part.rename(file)
        return figures

    def changes(self, subject: Subject | None) -> dict[str, Any]:
        """`taken_stays_gone` and `door_stays_open` of a world; None for the simulator."""
        names = {"taken_stays_gone": PICKUP, "door_stays_open": DOOR}
        if self.config.paths < LEAST_CASES:
            why = f"{self.config.paths} maps give too few cases; use --paths {LEAST_CASES} or more"
            return {name: without("undefined", why) for name in names}
        figures = {}
        for name, kind in names.items():
            changes = make_changes(self.simulation, self.config.out, kind, self.config.paths, self.config.workers)
            if subject is None:
                rollouts = [true_change_rollout(change) for change in changes]
            else:
                rollouts = make_change_rollouts(subject, changes, self.config.workers)
            figures[name] = change_figure(changes, rollouts, self.reference.net)
        return figures


def _row_name(checkpoint: str) -> str:
    """A name for a folder: the last part of the checkpoint's path."""
    return checkpoint.rstrip("/").split("/")[-1]


def _codec_of(checkpoint: str) -> Any:
    from mosaic_gym.evaluation.suites.world.known_worlds import through_codec
    from mosaic_gym.model.checkpoints import WorldModel

    return None if checkpoint == CEILING else through_codec(WorldModel.from_pretrained(checkpoint))


def _speed(checkpoint: str) -> dict[str, Any]:
    """`steps_per_second`, see `mosaic-gym evaluate speed`."""
    from mosaic_gym.evaluation.speed.steps import steps_per_second

    if checkpoint == CEILING:
        return {"value": None, "low": None, "high": None, "reason": NO_NETWORK}
    return {**steps_per_second(checkpoint, steps=60, warm_up=60), "reason": None}


def _calibrate(bench: Bench, others: TrueWalks, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of the worlds whose answer is known, and what catches them."""
    config, reference = bench.config, bench.reference
    worlds = {CEILING: rows[CEILING], SECOND_CEILING: _second_ceiling(bench)}
    changes = {"blur": blurred, "noise": noisy}
    if reference.codec is not None:
        changes[CODEC] = reference.codec
    for name, change in changes.items():
        rollouts = [changed(row, change) for row in simulator_rollouts(others.scenes)]
        of = f"{name}:{config.checkpoint}" if name == CODEC else name
        worlds[name] = bench.row(name, others, rollouts, of, same_depth=rows[CEILING])
    checkpoint = "doom-tiny" if config.checkpoint == CEILING else config.checkpoint
    for name in (*CANNED, "warp"):
        worlds[name] = _known(bench, name, name, checkpoint)
    if bench.simulation == simulation_of("doom-tiny", config.split):
        worlds["doom-tiny"] = rows.get("doom-tiny") or _known(bench, "doom-tiny", "learned", "doom-tiny")
    caught = catches(worlds, rows[CEILING])
    lines = verdicts(caught, good={CEILING, SECOND_CEILING}, neutral={CODEC})
    return {"calibration": worlds, "caught": caught, "verdicts": lines}


def _second_ceiling(bench: Bench) -> dict[str, Any]:
    config = bench.config
    again = make_scenes(bench.simulation, config.out, 2 * OTHER_MAPS, config.paths, config.workers)
    return bench.row(SECOND_CEILING, TrueWalks(again), simulator_rollouts(again), "simulator")


def _known(bench: Bench, name: str, kind: str, checkpoint: str) -> dict[str, Any]:
    subject = bench.subject(name, kind, checkpoint)
    rollouts = make_rollouts(subject, bench.reference.scenes, bench.config.workers)
    return bench.row(name, bench.own, rollouts, fingerprint_of(subject))
