"""Recording: a scripted explorer drives the simulator, one episode per seed, or per generated map."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from mosaic_gym.data.episodes import SPLITS, EpisodeStore, episode_folder, write_episode
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control
from mosaic_gym.processes import end_with_parent, workers_end_on_error
from mosaic_gym.validation import Flag, OneOf, Text, Whole, option, validate
from mosaic_gym.worlds.captions import caption
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.doom_game import check_scenario, choose_crop
from mosaic_gym.worlds.explorer import Explorer
from mosaic_gym.worlds.maps.levels import SCENARIO as ROOMS
from mosaic_gym.worlds.maps.rooms import SPLITS as MAP_SPLITS
from mosaic_gym.worlds.maps.rooms import MapOptions, map_seed
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.room_captions import caption_steps
from mosaic_gym.worlds.room_explorer import RoomExplorer

MAP_OPTIONS = tuple(field.name for field in fields(MapOptions))
"""Options of the command that generated maps have."""


CALIBRATION_FRAMES = 256
"""Frames of the simulator alone, with which a recording's speed is compared, in each measurement."""
CALIBRATED_EPISODES = 4
"""A worker measures after so many episodes. With fewer it does not: that would take about as long."""
CALIBRATIONS = 5
"""A worker measures so often, because the load of a machine changes."""


@dataclass(frozen=True)
class RecordConfig:
    """Record episodes of the simulator."""

    out: Path | None = None
    """Folder for the episodes; None for `data/` and the scenario. Episodes that are there are not recorded again."""
    scenario: Annotated[str, Text()] = "my_way_home"
    """Which map, or `rooms`, where every episode has a generated map of its own; see `DoomWorld`."""
    episodes: Annotated[int, Whole(1)] = 360
    """Number of episodes, with seeds counted from `--seed`. Seeds that end in 9 are held out."""
    maps: Annotated[int | None, Whole(1)] = None
    """Number of maps, one episode each, instead of `--episodes`; for the scenario `rooms`."""
    split: Annotated[str | None, OneOf(*MAP_SPLITS)] = None
    """Split of the maps, None for `train`; for the scenario `rooms`."""
    steps_per_episode: Annotated[int, Whole(1)] = 80
    """Steps (four frames each) of an episode, unless the game ends it earlier."""
    seed: Annotated[int, Whole(0)] = 0
    """Seed of the first episode. In `rooms` maps are counted within their split, from this one."""
    height: Annotated[int, Whole(1)] = 64
    """Height of the frames, pixels."""
    width: Annotated[int, Whole(1)] = 64
    """Width of the frames, pixels."""
    workers: Annotated[int, Whole(1)] = 2
    """Simulators that run at once, one process each."""
    pickups: Annotated[int | None, Whole(0, 40)] = None
    """Number of things to gather, None for 8; for the scenario `rooms`."""
    doors: Annotated[bool | None, Flag()] = None
    """Whether there are doors, None for yes; for the scenario `rooms`."""
    monsters: Annotated[int | None, Whole(0, 12)] = None
    """Number of monsters that walk, None for 2; for the scenario `rooms`."""
    lights: Annotated[bool | None, Flag()] = None
    """Whether the light of some rooms goes out, None for yes; for the scenario `rooms`."""

    def __post_init__(self) -> None:
        validate(self, option)
        choose_crop(self.height, self.width)
        if self.out is None:
            object.__setattr__(self, "out", Path("data") / self.scenario.replace(":", "_"))
        if self.scenario.partition(":")[0] == ROOMS:
            if self.scenario != ROOMS:
                raise ValueError(
                    f"--scenario {self.scenario} is one map, and a recording has one episode a map: give --scenario "
                    f"{ROOMS}, with --seed and --maps"
                )
            return
        check_scenario(self.scenario)
        wrong = [name for name in ("maps", "split", *MAP_OPTIONS) if getattr(self, name) is not None]
        if wrong:
            raise ValueError(f"--{wrong[0]} is for --scenario {ROOMS}, whose maps are generated; got {self.scenario}")

    @property
    def map_options(self) -> MapOptions | None:
        """Which things generated maps have; None for other scenarios."""
        chosen = {name: getattr(self, name) for name in MAP_OPTIONS if getattr(self, name) is not None}
        return MapOptions(**chosen) if self.scenario == ROOMS else None

    @property
    def map_split(self) -> str | None:
        """The split of generated maps; None for other scenarios."""
        return (self.split or "train") if self.scenario == ROOMS else None

    @property
    def seeds(self) -> range:
        """Seeds of all episodes."""
        count = self.maps if self.scenario == ROOMS and self.maps is not None else self.episodes
        return range(self.seed, self.seed + count)

    def folder(self, seed: int) -> Path:
        """Folder of a seed's episode; episodes of generated maps lie under the seed of their map."""
        if self.map_split is None:
            return episode_folder(self.out, seed)
        return episode_folder(self.out, map_seed(seed, self.map_split), self.map_split)


@dataclass(frozen=True)
class _Progress:
    """An episode that a worker wrote, and its frames and seconds so far: of episodes, and of the simulator alone."""

    worker: int
    frames: int
    seconds: float
    bytes: int
    simulator_frames: int
    simulator_seconds: float


def record_episode(world: DoomWorld, config: RecordConfig, seed: int) -> Path:
    """Records the episode of one seed; the same seed always gives the same episode."""
    state, view = world.start(Start(seed=seed))
    rng = np.random.default_rng(seed)
    if config.map_split is None:
        explorer = Explorer(world, state, view, config.steps_per_episode, rng)
        explorer.explore()
        captions, generated = [caption(view) for view in explorer.views], None
    else:
        explorer = RoomExplorer(world, state, view, config.steps_per_episode, rng)
        explorer.explore()
        steps = caption_steps(explorer.views, explorer.layouts)
        captions = [step.text for step in steps]
        generated = {
            "map_seed": map_seed(seed, config.map_split),
            "split": config.map_split,
            "maps": asdict(config.map_options),
            "themes": [step.theme for step in steps],
            "rooms": [step.room for step in steps],
            "events": [list(step.events) for step in steps],
        }
    actions = np.array(explorer.actions)
    return write_episode(config.out, seed, config.scenario, explorer.views, actions, captions, generated)


def record(config: RecordConfig) -> None:
    """Records the episodes that are missing, with a progress bar, and prints their size and speed.

    Raises:
        ValueError: the folder holds episodes of another scenario, size, length or other options of maps.
        OSError: the folder cannot be written, or a worker died. The same command continues from there.
    """
    _check_folder(config)
    missing = [seed for seed in config.seeds if not (config.folder(seed) / "episode.json").exists()]
    latest: dict[int, _Progress] = {}
    with tqdm(total=len(config.seeds), initial=len(config.seeds) - len(missing), unit="episode") as bar:
        episodes = _record_here(config, missing) if config.workers == 1 else _record_in_workers(config, missing)
        for progress in episodes:
            latest[progress.worker] = progress
            bar.update()
    if latest:
        print(_summary(list(latest.values())))


def _summary(workers: Sequence[_Progress]) -> str:
    """Disk per 1,000 frames, and frames a second beside the simulator's alone, of all workers together."""
    frames = sum(worker.frames for worker in workers)
    size = sum(worker.bytes for worker in workers) / frames * 1000 / 1e6
    rate = sum(worker.frames / worker.seconds for worker in workers)
    text = f"{size:.1f} MB per 1,000 frames; {rate:.0f} frames/s"
    measured = [worker for worker in workers if worker.simulator_frames]
    if measured:
        alone = sum(worker.simulator_frames / worker.simulator_seconds for worker in measured)
        share = sum(worker.frames / worker.seconds for worker in measured) / alone
        text += f", {share:.2f} of the simulator's alone with the same buffers ({alone:.0f} frames/s)"
    return text


def _record_here(config: RecordConfig, seeds: Sequence[int], worker: int = 0) -> Iterator[_Progress]:
    """Records in this process; yields when an episode is written."""
    split, maps = config.map_split, config.map_options
    with closing(DoomWorld(config.scenario, config.height, config.width, Control(), 0, split, maps)) as world:
        frames, size, seconds, simulator_frames, simulator_seconds = 0, 0, 0.0, 0, 0.0
        for count, seed in enumerate(seeds, start=1):
            started_s = time.perf_counter()
            folder = record_episode(world, config, seed)
            seconds += time.perf_counter() - started_s
            size += sum(path.stat().st_size for path in folder.iterdir())
            frames += FRAMES_PER_STEP * (folder / "terminated.memmap").stat().st_size  # a byte a step
            if count % CALIBRATED_EPISODES == 0 and count <= CALIBRATIONS * CALIBRATED_EPISODES:
                simulator_seconds += world.simulator_seconds(CALIBRATION_FRAMES)
                simulator_frames += CALIBRATION_FRAMES
            yield _Progress(worker, frames, seconds, size, simulator_frames, simulator_seconds)


def _record_in_workers(config: RecordConfig, seeds: Sequence[int]) -> Iterator[_Progress]:
    """Records in `config.workers` processes, which end with this one; yields when an episode is written."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    parts = [part for first in range(config.workers) if (part := seeds[first :: config.workers])]
    workers = [
        context.Process(target=_work, args=(config, part, index, results), daemon=True)
        for index, part in enumerate(parts)
    ]
    with workers_end_on_error():
        for worker in workers:
            worker.start()
        for _ in seeds:
            while results.empty():
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise ChildProcessError("a recording worker died; the same command continues from there")
                time.sleep(0.05)
            result = results.get()
            if isinstance(result, OSError):
                raise result
            yield result
        for worker in workers:
            worker.join()


def _work(config: RecordConfig, seeds: Sequence[int], worker: int, results: SimpleQueue) -> None:
    """A worker: puts its progress into `results` when an episode is written, or the OSError that prevents it."""
    end_with_parent()
    try:
        for progress in _record_here(config, seeds, worker):
            results.put(progress)
    except OSError as error:
        results.put(error)


def _check_folder(config: RecordConfig) -> None:
    """Raises ValueError if the folder holds episodes of another scenario, size, length or options of maps.

    Seeds may differ, because every seed has an episode of its own. The number of workers does not change an episode.
    """
    requested = {"scenario": config.scenario, "size": (config.height, config.width)}
    requested |= {} if config.map_options is None else {"maps": asdict(config.map_options)}
    for split in SPLITS:
        try:
            store = EpisodeStore(config.out, split)
        except FileNotFoundError:
            continue
        metadata = store.metadata(0)
        stored = {"scenario": metadata["scenario"], "size": tuple(store.load(0)["frames"].shape[2:4])}
        stored |= {"maps": metadata["maps"]} if "maps" in metadata else {}
        if stored != requested:
            raise ValueError(f"{config.out} holds episodes of {stored}, not of {requested}: give another --out")
        for index, folder in enumerate(store.folders):
            episode, limit = store.load(index), config.steps_per_episode
            steps = len(episode)
            # An episode that the game ended is shorter, and would have ended there under any longer limit.
            if steps > limit or (steps < limit and not episode["terminated"][-1]):
                raise ValueError(
                    f"{config.out} holds episodes of another length: {folder.name} has {steps} steps, and "
                    f"--steps-per-episode asks for {limit}. Give --steps-per-episode as it was, or another --out"
                )
