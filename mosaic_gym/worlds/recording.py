"""Recording: the scripted explorer drives the simulator, one episode per seed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from mosaic_gym.data.episodes import SPLITS, EpisodeStore, episode_folder, write_episode
from mosaic_gym.processes import end_with_parent, workers_end_on_error
from mosaic_gym.validation import Text, Whole, option, validate
from mosaic_gym.worlds.captions import caption
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.doom_game import check_scenario, choose_crop
from mosaic_gym.worlds.explorer import Explorer
from mosaic_gym.worlds.protocol import Start


@dataclass(frozen=True)
class RecordConfig:
    """Record episodes of the simulator."""

    out: Path = Path("data/my_way_home")
    """Folder for the episodes. Episodes that are there already are not recorded again."""
    scenario: Annotated[str, Text()] = "my_way_home"
    """Which map; see `DoomWorld`."""
    episodes: Annotated[int, Whole(1)] = 360
    """Number of episodes, with seeds counted from `--seed`. Seeds that end in 9 are held out."""
    steps_per_episode: Annotated[int, Whole(1)] = 80
    """Steps (four frames each) of an episode, unless the game ends it earlier."""
    seed: Annotated[int, Whole(0)] = 0
    """Of the first episode."""
    height: Annotated[int, Whole(1)] = 64
    """Of the frames, pixels."""
    width: Annotated[int, Whole(1)] = 64
    """Of the frames, pixels."""
    workers: Annotated[int, Whole(1)] = 2
    """Simulators that run at once, one process each."""

    def __post_init__(self) -> None:
        validate(self, option)
        check_scenario(self.scenario)
        choose_crop(self.height, self.width)


def record_episode(world: DoomWorld, config: RecordConfig, seed: int) -> Path:
    """Records the episode of one seed; the same seed always gives the same episode."""
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, config.steps_per_episode, np.random.default_rng(seed))
    explorer.explore()
    captions = [caption(view) for view in explorer.views]
    return write_episode(config.out, seed, config.scenario, explorer.views, np.array(explorer.actions), captions)


def record(config: RecordConfig) -> None:
    """Records the episodes that are missing, with a progress bar.

    Raises:
        ValueError: the folder holds episodes of another scenario, size or length.
        OSError: the folder cannot be written, or a worker died. The same command continues from there.
    """
    seeds = range(config.seed, config.seed + config.episodes)
    _check_folder(config)
    missing = [seed for seed in seeds if not (episode_folder(config.out, seed) / "episode.json").exists()]
    with tqdm(total=config.episodes, initial=config.episodes - len(missing), unit="episode") as bar:
        episodes = _record_here(config, missing) if config.workers == 1 else _record_in_workers(config, missing)
        for _ in episodes:
            bar.update()


def _record_here(config: RecordConfig, seeds: Sequence[int]) -> Iterator[int]:
    """Records in this process; yields each seed when its episode is written."""
    with closing(DoomWorld(config.scenario, config.height, config.width, timeout_tics=0)) as world:
        for seed in seeds:
            record_episode(world, config, seed)
            yield seed


def _record_in_workers(config: RecordConfig, seeds: Sequence[int]) -> Iterator[int]:
    """Records in `config.workers` processes, which end with this one; yields each seed when its episode is written."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    parts = [part for first in range(config.workers) if (part := seeds[first :: config.workers])]
    workers = [context.Process(target=_work, args=(config, part, results), daemon=True) for part in parts]
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


def _work(config: RecordConfig, seeds: Sequence[int], results: SimpleQueue) -> None:
    """A worker: puts each seed whose episode is written into `results`, or the OSError that prevents it."""
    end_with_parent()
    try:
        for seed in _record_here(config, seeds):
            results.put(seed)
    except OSError as error:
        results.put(error)


def _check_folder(config: RecordConfig) -> None:
    """Raises ValueError if the folder holds episodes of another scenario, size or length.

    Seeds may differ, because every seed has an episode of its own. The number of workers does not change an episode.
    """
    requested = {"scenario": config.scenario, "size": (config.height, config.width)}
    for split in SPLITS:
        try:
            store = EpisodeStore(config.out, split)
        except FileNotFoundError:
            continue
        stored = {"scenario": store.metadata(0)["scenario"], "size": tuple(store.load(0)["frames"].shape[2:4])}
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
