"""Recording: the explorer, let loose in the engine, one seed an episode."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mosaic_gym.data.episodes import SPLITS, EpisodeStore, episode_folder, write_episode
from mosaic_gym.worlds.captions import caption
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.doom_game import check_scenario, choose_crop
from mosaic_gym.worlds.explorer import Explorer
from mosaic_gym.worlds.protocol import Start


@dataclass(frozen=True)
class RecordConfig:
    """What `mosaic-gym record` takes."""

    out: Path = Path("data/my_way_home")
    """Where episodes are written; what is already there is kept and not recorded again."""
    scenario: str = "my_way_home"
    """Which map; see `DoomWorld`."""
    episodes: int = 360
    """Episodes, seeds counted from `--seed`; every seed that ends in 9 is held out."""
    steps_per_episode: int = 80
    """Steps (four frames each) of an episode, unless the game ends it."""
    seed: int = 0
    """Of the first episode."""
    height: int = 64
    """Of the frames, pixels."""
    width: int = 64
    """Of the frames, pixels."""
    workers: int = 2
    """Engines that run at once."""


def record_episode(world: DoomWorld, config: RecordConfig, seed: int) -> Path:
    """Records the episode of one seed, the same one each time."""
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, config.steps_per_episode, np.random.default_rng(seed))
    explorer.explore()
    captions = [caption(view) for view in explorer.views]
    return write_episode(config.out, seed, config.scenario, explorer.views, np.array(explorer.actions), captions)


def _work(config: RecordConfig, seeds: list[int], finished: Callable[[int], None]) -> None:
    world = DoomWorld(config.scenario, config.height, config.width, timeout_tics=0)
    for seed in seeds:
        record_episode(world, config, seed)
        finished(seed)
    world.close()


def _check_folder(config: RecordConfig) -> None:
    """Raises ValueError if the folder holds episodes that do not go with those asked for.

    Seeds are not among it (each has an episode of its own), nor are workers (whoever records one, it is the same).
    """
    asked = {"scenario": config.scenario, "size": (config.height, config.width)}
    for split in SPLITS:
        try:
            store = EpisodeStore(config.out, split)
        except FileNotFoundError:
            continue
        there = {"scenario": store.metadata(0)["scenario"], "size": tuple(store.load(0)["frames"].shape[2:4])}
        if there != asked:
            raise ValueError(f"{config.out} holds episodes of {there}, not of {asked}: give another --out")
        for index, folder in enumerate(store.folders):
            episode, most = store.load(index), config.steps_per_episode
            steps = len(episode)
            # An episode that the game ended is shorter, and would have ended there whatever was asked for.
            if steps > most or (steps < most and not episode["terminated"][-1]):
                raise ValueError(
                    f"{config.out} holds episodes of another length: {folder.name} has {steps} steps, and "
                    f"--steps-per-episode asks for {most}. Give --steps-per-episode as it was, or another --out"
                )


def record(config: RecordConfig) -> None:
    """Records what is missing, with a progress bar.

    Raises:
        ValueError: a count below 1, an unknown scenario, a size that no screen has, or a folder that holds episodes of
            another scenario, size or length. RuntimeError: a worker died; run the command again to go on.
    """
    if min(config.episodes, config.steps_per_episode, config.workers) < 1:
        raise ValueError("episodes, steps-per-episode and workers are at least 1")
    check_scenario(config.scenario)  # a worker could only die of it
    choose_crop(config.height, config.width)
    seeds = range(config.seed, config.seed + config.episodes)
    _check_folder(config)
    missing = [seed for seed in seeds if not (episode_folder(config.out, seed) / "episode.json").exists()]
    with tqdm(total=config.episodes, initial=config.episodes - len(missing), unit="episode") as bar:
        if config.workers == 1:
            _work(config, missing, lambda seed: bar.update())
            return
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        parts = [part for first in range(config.workers) if (part := missing[first :: config.workers])]
        workers = [context.Process(target=_work, args=(config, part, queue.put), daemon=True) for part in parts]
        for worker in workers:
            worker.start()
        waiting = len(missing)
        while waiting:
            while queue.empty():
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise RuntimeError("a recording worker died (see above); run the command again to go on from there")
                time.sleep(0.2)
            queue.get()
            waiting -= 1
            bar.update()
        for worker in workers:
            worker.join()
