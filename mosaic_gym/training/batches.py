"""Batches for `train world`: each drawn from its step's seed alone, here or ahead of time by worker processes.

An accelerator trains several batches in the time that one takes to be drawn and recalled, so on a machine with many
cores workers draw. What they cannot do is dream with weights that change; those batches are drawn here. And an
accelerator that is faster than all the workers meets samples several times, each time among others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.training.run import exact_products
from mosaic_gym.training.samples import Remembered, draw_state, forget_a_wedge, retrieve_mixed
from mosaic_gym.worlds.mosaic import MosaicWorld, WorldState

if TYPE_CHECKING:
    from mosaic_gym.training.run import Run
    from mosaic_gym.training.world import Config


MAX_ROLLED = 3
"""Steps before a batch's targets that are the model's own dream, at most."""
WINDOW = 16
"""Drawn batches that samples met several times are taken from."""


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
    retrieved: Retrieved

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, always in the same order."""
        retrieved = [getattr(self.retrieved, each.name) for each in fields(Retrieved)]
        return [self.latents, self.cameras, self.history, self.history_cameras, *retrieved]

    def mapped(self, change: Callable[[Tensor], Tensor], prompts: list[str] | None = None) -> Batch:
        """The batch with every tensor changed, and of other prompts if any are given."""
        own = [change(value) for value in self.tensors]
        return Batch(*own[:4], self.prompts if prompts is None else prompts, Retrieved(*own[4:]))

    def pin_memory(self) -> Batch:
        """The same batch where an accelerator fetches it by itself; a data loader looks for this name."""
        return self.mapped(Tensor.pin_memory)


def batches(world: MosaicWorld, episodes: list[Remembered], config: Config, run: Run) -> Iterator[Batch]:
    """The run's batches, from its present step on, without end.

    Args:
        world: whose map is recalled, and which dreams, with its present weights.
        episodes: on its device.

    Raises:
        ValueError: `config.reuse` is no whole number from 1, or dreamt samples were to be met several times: a resumed
            run could not dream them again, with weights that are gone.
    """
    if config.reuse < 1:
        raise ValueError(f"--reuse is how often a sample is met, at least 1; got {config.reuse}")
    if config.reuse > 1 and config.dream:
        raise ValueError("samples that are dreamt are met once; give --dream 0 with --reuse")
    first = run.step_index // config.reuse
    drawn = _drawn(world, episodes, config, run, first)
    return drawn if config.reuse == 1 else _met_again(drawn, config, run, first)


def _drawn(world: MosaicWorld, episodes: list[Remembered], config: Config, run: Run, first: int) -> Iterator[Batch]:
    """The batches that are drawn, from the `first` on, on the world's device."""
    if not config.workers:
        for seed in run.seeds(first):
            yield draw_batch(world, episodes, config, seed)
    cpu = torch.device("cpu")
    # An accelerator cannot be used in a forked process; what lies in memory already is shared with it.
    there = [replace(episode, keyframes=[each.to(cpu) for each in episode.keyframes]) for episode in episodes]
    drawer = _Drawer(MosaicWorld(copy.deepcopy(world.model), "cpu"), there, config)
    drawn = DataLoader(
        drawer,
        batch_size=None,
        sampler=run.seeds(first),
        num_workers=config.workers,
        multiprocessing_context="fork",
        pin_memory=world.device.type == "cuda",
    )
    for seed, batch in zip(run.seeds(first), drawn, strict=True):
        if batch is None:
            yield draw_batch(world, episodes, config, seed)
        else:
            yield batch.mapped(lambda value: value.to(world.device, non_blocking=True))


def _met_again(drawn: Iterator[Batch], config: Config, run: Run, first: int) -> Iterator[Batch]:
    """Batches of samples from the last `WINDOW` drawn ones, which move on by one every `config.reuse` steps.

    So a sample is met `config.reuse` times on average, and a resumed run, which draws the window anew, goes on with
    the same samples.
    """
    window, prompts, count = None, [[]] * WINDOW, 0
    while True:
        while first + count < run.step_index // config.reuse + WINDOW:
            batch, slot = next(drawn), (first + count) % WINDOW
            window = window or batch.mapped(lambda value: value.new_empty(WINDOW, *value.shape))
            for kept, fresh in zip(window.tensors, batch.tensors, strict=True):
                kept[slot] = fresh
            prompts[slot] = batch.prompts
            count += 1
        rng = np.random.default_rng([run.seed, 2])
        rows = rng.choice(WINDOW * config.batch, config.batch, replace=False)
        index = torch.from_numpy(rows).to(window.latents.device)
        read = [prompts[row // config.batch][row % config.batch] for row in rows]
        yield window.mapped(lambda kept, index=index: kept.flatten(0, 1)[index], read)


class _Drawer(Dataset):
    """Batches by their seeds; None for those that begin with a dream."""

    def __init__(self, world: MosaicWorld, episodes: list[Remembered], config: Config) -> None:
        self.world, self.episodes, self.config = world, episodes, config

    def __getitem__(self, seed: int) -> Batch | None:
        if _rolled_steps(self.config, np.random.default_rng(seed)):
            return None
        return draw_batch(self.world, self.episodes, self.config, seed)


def _rolled_steps(config: Config, rng: np.random.Generator) -> int:
    """So many steps before the targets are the model's own dream; the first that a batch draws."""
    return int(rng.integers(1, MAX_ROLLED + 1)) if rng.random() < config.dream else 0


@exact_products()
@torch.no_grad()
def draw_batch(world: MosaicWorld, episodes: list[Remembered], config: Config, seed: int) -> Batch:
    """The batch of a seed, on the world's device."""
    rng = np.random.default_rng(seed)
    dreamt = _rolled_steps(config, rng)
    states, members = [], []
    unread = world.model.text_encoder.encode([""])[0]
    long_enough = [i for i, episode in enumerate(episodes) if len(episode.keyframes) > 1 + dreamt]
    for _ in range(config.batch):
        index = int(rng.choice(long_enough))
        step = int(rng.integers(1 + dreamt, len(episodes[index].keyframes)))
        prompt = "" if rng.random() < config.empty_prompt else episodes[index].captions[step]
        state = draw_state(episodes[index], step - dreamt, config.mix, unread, seed, rng)
        if rng.random() < config.mix.wedge:
            state = forget_a_wedge(state, episodes[index].keyframes[step].world_from_keyframe, rng)
        states.append(replace(state, prompt=prompt))
        members.append((index, step))
    if dreamt:  # without a dream nobody reads a prompt here; the run reads it with the weights that learn
        texts = world.model.text_encoder.encode([state.prompt for state in states])
        states = [replace(state, text=text) for state, text in zip(states, texts, strict=True)]
        states = roll_ahead(world, episodes, states, members, dreamt)
    targets = [episodes[index].keyframes[step] for index, step in members]
    cameras = torch.stack([target.world_from_camera for target in targets])
    pictures = world.pictures(states, cameras[:, None])
    rng = np.random.default_rng([seed, 1])  # the batch's own draws stay what they are, whatever the mixture
    retrieved = retrieve_mixed(world, states, cameras[:, None], pictures, config.mix, rng)
    return Batch(
        latents=torch.stack([target.latent for target in targets]),
        cameras=cameras,
        history=torch.stack([state.history for state in states]),
        history_cameras=torch.stack([state.history_cameras for state in states]),
        prompts=[state.prompt for state in states],
        retrieved=retrieved,
    )


def roll_ahead(
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
