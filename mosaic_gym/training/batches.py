"""Batches for `train world`: each drawn from its step's seed alone, here or ahead of time by worker processes.

An accelerator trains several batches in the time that one takes to be drawn and recalled, so on a machine with many
cores workers draw. What they cannot do is dream with weights that change; those batches are drawn here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import Recall
from mosaic_gym.training.run import exact_products
from mosaic_gym.training.samples import Remembered, draw_state, forget_a_wedge, recall_mixed
from mosaic_gym.worlds.mosaic import MosaicWorld, WorldState

if TYPE_CHECKING:
    from mosaic_gym.training.run import Run
    from mosaic_gym.training.world import Config


MOST_DREAMT = 3
"""Steps before a batch's targets that are the model's own dream, at most."""


@dataclass(frozen=True)
class Batch:
    """Samples: what the networks are given, and what they should say.

    Attributes:
        latents: `[b, c, h, w]`, the targets; cameras: `[b, 4, 4, 4]`, theirs, metres.
        history: `[b, 1, c, h, w]`, the latents before; history_cameras: `[b, 1, 4, 4, 4]`.
        prompts: `b` of them.
        recalled: what memory and map give for the targets' views.
    """

    latents: Tensor
    cameras: Tensor
    history: Tensor
    history_cameras: Tensor
    prompts: list[str]
    recalled: Recall

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        names = "latents", "cameras", "history", "history_cameras"
        recalled = {each.name: getattr(self.recalled, each.name).to(device) for each in fields(Recall)}
        return replace(self, recalled=Recall(**recalled), **{name: getattr(self, name).to(device) for name in names})


def batches(world: MosaicWorld, episodes: list[Remembered], config: Config, run: Run) -> Iterator[Batch]:
    """The run's batches, from its present step on, without end.

    Args:
        world: whose map is recalled, and which dreams, with its present weights.
        episodes: on its device.
    """
    if not config.workers:
        for seed in run.seeds():
            yield draw_batch(world, episodes, config, seed)
    cpu = torch.device("cpu")
    # An accelerator cannot be used in a forked process; what lies in memory already is shared with it.
    there = [replace(episode, keyframes=[each.to(cpu) for each in episode.keyframes]) for episode in episodes]
    drawer = _Drawer(MosaicWorld(copy.deepcopy(world.model), "cpu"), there, config)
    drawn = DataLoader(
        drawer, batch_size=None, sampler=run.seeds(), num_workers=config.workers, multiprocessing_context="fork"
    )
    for seed, batch in zip(run.seeds(), drawn, strict=True):
        yield draw_batch(world, episodes, config, seed) if batch is None else batch.to(world.device)


class _Drawer(Dataset):
    """Batches by their seeds; None for those that begin with a dream."""

    def __init__(self, world: MosaicWorld, episodes: list[Remembered], config: Config) -> None:
        self.world, self.episodes, self.config = world, episodes, config

    def __getitem__(self, seed: int) -> Batch | None:
        if _dreamt_steps(self.config, np.random.default_rng(seed)):
            return None
        return draw_batch(self.world, self.episodes, self.config, seed)


def _dreamt_steps(config: Config, rng: np.random.Generator) -> int:
    """So many steps before the targets are the model's own dream; the first that a batch draws."""
    return int(rng.integers(1, MOST_DREAMT + 1)) if rng.random() < config.dream else 0


@exact_products()
@torch.no_grad()
def draw_batch(world: MosaicWorld, episodes: list[Remembered], config: Config, seed: int) -> Batch:
    """The batch of a seed, on the world's device."""
    rng = np.random.default_rng(seed)
    dreamt = _dreamt_steps(config, rng)
    states, members = [], []
    unread = world.model.text_encoder.encode([""])[0]
    long_enough = [i for i, episode in enumerate(episodes) if len(episode.keyframes) > 1 + dreamt]
    for _ in range(config.batch):
        index = int(rng.choice(long_enough))
        step = int(rng.integers(1 + dreamt, len(episodes[index].keyframes)))
        prompt = "" if rng.random() < config.empty_prompt else episodes[index].captions[step]
        state = draw_state(episodes[index], step - dreamt, config.mix, unread, seed, rng)
        if rng.random() < config.mix.wedge:
            state = forget_a_wedge(state, episodes[index].keyframes[step].world_from_still, rng)
        states.append(replace(state, prompt=prompt))
        members.append((index, step))
    if dreamt:  # without a dream nobody reads a prompt here; the run reads it with the weights that learn
        texts = world.model.text_encoder.encode([state.prompt for state in states])
        states = [replace(state, text=text) for state, text in zip(states, texts, strict=True)]
        states = dream_ahead(world, episodes, states, members, dreamt)
    targets = [episodes[index].keyframes[step] for index, step in members]
    cameras = torch.stack([target.world_from_camera for target in targets])
    pictures = world.pictures(states, cameras[:, None])
    rng = np.random.default_rng([seed, 1])  # the batch's own draws stay what they are, whatever the mixture
    recalled = recall_mixed(world, states, cameras[:, None], pictures, config.mix, rng)
    return Batch(
        latents=torch.stack([target.latent for target in targets]),
        cameras=cameras,
        history=torch.stack([state.history for state in states]),
        history_cameras=torch.stack([state.history_cameras for state in states]),
        prompts=[state.prompt for state in states],
        recalled=recalled,
    )


def dream_ahead(
    world: MosaicWorld, episodes: list[Remembered], states: list[WorldState], members: list[tuple[int, int]], steps: int
) -> list[WorldState]:
    """Lets the present weights live through the `steps` steps before each target."""
    for i in range(steps):
        poses = []
        for index, step in members:
            cameras = episodes[index].keyframes[step - steps + i].world_from_camera.double().cpu().numpy()
            poses.append([Pose(camera) for camera in cameras])
        states, _ = world.see(states, poses)
    return states
