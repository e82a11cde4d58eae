"""Batches for `train world`, each drawn from its step's seed alone, between steps or ahead of time by worker processes.

An accelerator trains several batches in the time that it takes to draw one, so on a machine with many cores workers
draw them. Workers cannot roll out the model, whose weights change; those batches are drawn in the main process. An
accelerator that is faster than all workers together trains on every sample several times, each time in another batch.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.training.precision import exact_products
from mosaic_gym.training.samples import LiftedEpisode, MemoryAugmentation, crop_memory, draw_state, retrieve_mixed
from mosaic_gym.validation import Number, Whole, option, validate
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.state import WorldState

if TYPE_CHECKING:
    from mosaic_gym.training.run import Run

MAX_ROLLOUT = 3
"""Most steps that the model itself generates before a batch's targets."""
BUFFER = 16
"""Batches in the shuffle buffer from which samples are taken when they are reused."""


@dataclass(frozen=True)
class BatchOptions:
    """The options of a recipe's config that define its batches."""

    batch: Annotated[int, Whole(1)] = 12
    """Samples in a batch."""
    rollout: Annotated[float, Number(0.0, 1.0)] = 0.2
    """Share of batches for which the model itself generates the last one to three steps before the targets (scheduled
    sampling), so that it learns to continue its own frames."""
    empty_prompt: Annotated[float, Number(0.0, 1.0)] = 0.1
    """Share of samples whose prompt is empty."""
    augmentation: MemoryAugmentation = field(default_factory=MemoryAugmentation)
    """Which part of the past is in a sample's memory, and by which warps the network gets it."""
    workers: Annotated[int, Whole(0)] = 0
    """Processes that draw batches ahead, where processes can be forked; 0 draws them between steps. With an
    accelerator, use as many as there are cores."""
    reuse: Annotated[int, Whole(1)] = 1
    """How often a sample is used, on average. More than once helps where an accelerator trains faster than workers
    draw; it needs --rollout 0."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for reuse beside rollouts."""
        validate(self, option)
        if self.reuse > 1 and self.rollout:
            raise ValueError(
                f"--reuse {self.reuse} does not go with --rollout {self.rollout}: a resumed run could not roll out "
                "the weights of earlier steps again. Give --rollout 0 with --reuse"
            )


@dataclass(frozen=True)
class Batch:
    """Samples: the inputs of the networks, and their targets.

    Attributes:
        latents: `[b, c, h, w]`, the targets.
        cameras: `[b, 4, 4, 4]`, the targets' world_from_camera, metres.
        history: `[b, 1, c, h, w]`, the latents of the steps before.
        history_cameras: `[b, 1, 4, 4, 4]`, the cameras of those.
        prompts: `b` texts.
        retrieved: from memory and map, for the targets' views.
    """

    latents: Tensor
    cameras: Tensor
    history: Tensor
    history_cameras: Tensor
    prompts: list[str]
    retrieved: Retrieved

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, always in the same order."""
        retrieved = [getattr(self.retrieved, part.name) for part in fields(Retrieved)]
        return [self.latents, self.cameras, self.history, self.history_cameras, *retrieved]

    def mapped(self, change: Callable[[Tensor], Tensor], prompts: list[str] | None = None) -> Batch:
        """The batch with `change` applied to every tensor, and other prompts unless they are None."""
        tensors = [change(value) for value in self.tensors]
        return Batch(*tensors[:4], self.prompts if prompts is None else prompts, Retrieved(*tensors[4:]))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; a DataLoader calls this method by its name."""
        return self.mapped(Tensor.pin_memory)


def batches(world: MosaicWorld, episodes: list[LiftedEpisode], options: BatchOptions, run: Run) -> Iterator[Batch]:
    """The run's batches from its present step on, without end. Closing the iterator ends the workers.

    Args:
        world: does retrieval, and rolls out with its present weights.
        episodes: on the world's device.
    """
    first = run.step_index // options.reuse
    fresh = _fresh_batches(world, episodes, options, run, first)
    return fresh if options.reuse == 1 else _reused_batches(fresh, options, run, first)


def _fresh_batches(
    world: MosaicWorld, episodes: list[LiftedEpisode], options: BatchOptions, run: Run, first: int
) -> Iterator[Batch]:
    """Batches of new samples, from number `first` on, on the world's device."""
    if not options.workers:
        for seed in run.seeds(first):
            yield draw_batch(world, episodes, options, seed)
    cpu = torch.device("cpu")
    # A forked process cannot use an accelerator; it shares what is in the CPU's memory.
    on_cpu = [replace(episode, keyframes=[keyframe.to(cpu) for keyframe in episode.keyframes]) for episode in episodes]
    dataset = BatchDataset(MosaicWorld(copy.deepcopy(world.model), "cpu"), on_cpu, options)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=run.seeds(first),
        num_workers=options.workers,
        multiprocessing_context="fork",
        pin_memory=world.device.type == "cuda",
        worker_init_fn=_ignore_signals,
    )
    loaded = iter(loader)
    try:
        for seed, batch in zip(run.seeds(first), loaded, strict=True):
            if batch is None:
                yield draw_batch(world, episodes, options, seed)
            else:
                yield batch.mapped(lambda value: value.to(world.device, non_blocking=True))
    finally:
        loaded._shutdown_workers()  # DataLoader has no public way, and a traceback would keep the workers waiting


def _ignore_signals(worker_id: int) -> None:
    """Leaves signals to the main process, which ends its workers; they also end when it is gone.

    Ctrl-C, and SIGTERM from `timeout` or a service manager, reach the whole process group. A worker that ended by a
    signal would raise an error while the main process shuts down.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _reused_batches(fresh: Iterator[Batch], options: BatchOptions, run: Run, first: int) -> Iterator[Batch]:
    """Batches of random samples from a shuffle buffer: the last `BUFFER` fresh batches.

    One fresh batch replaces the oldest every `options.reuse` steps, so a sample is used `options.reuse` times on
    average. A resumed run fills the buffer with the same batches, and continues with the same samples.
    """
    buffer, prompts, count = None, [[]] * BUFFER, 0
    try:
        while True:
            while first + count < run.step_index // options.reuse + BUFFER:
                batch, slot = next(fresh), (first + count) % BUFFER
                buffer = buffer or batch.mapped(lambda value: value.new_empty(BUFFER, *value.shape))
                for slots, value in zip(buffer.tensors, batch.tensors, strict=True):
                    slots[slot] = value
                prompts[slot] = batch.prompts
                count += 1
            rng = np.random.default_rng([run.seed, 2])
            rows = rng.choice(BUFFER * options.batch, options.batch, replace=False)
            index = torch.from_numpy(rows).to(buffer.latents.device)
            chosen = [prompts[row // options.batch][row % options.batch] for row in rows]
            yield buffer.mapped(lambda slots, index=index: slots.flatten(0, 1)[index], chosen)
    finally:
        fresh.close()


class BatchDataset(Dataset):
    """Batches by their seeds, for workers; None for a batch that needs a rollout."""

    def __init__(self, world: MosaicWorld, episodes: list[LiftedEpisode], options: BatchOptions) -> None:
        self.world, self.episodes, self.options = world, episodes, options

    def __getitem__(self, seed: int) -> Batch | None:
        if _rollout_steps(self.options, np.random.default_rng(seed)):
            return None
        return draw_batch(self.world, self.episodes, self.options, seed)


def _rollout_steps(options: BatchOptions, rng: np.random.Generator) -> int:
    """The number of steps that the model generates before the targets; the first draw of a batch."""
    return int(rng.integers(1, MAX_ROLLOUT + 1)) if rng.random() < options.rollout else 0


@exact_products()
@torch.no_grad()
def draw_batch(world: MosaicWorld, episodes: list[LiftedEpisode], options: BatchOptions, seed: int) -> Batch:
    """The batch of a seed, on the world's device."""
    rng = np.random.default_rng(seed)
    rollout = _rollout_steps(options, rng)
    augmentation = options.augmentation
    states, targets = [], []
    empty_text = world.model.text_encoder.encode([""])[0]
    long_enough = [i for i, episode in enumerate(episodes) if len(episode.keyframes) > 1 + rollout]
    for _ in range(options.batch):
        index = int(rng.choice(long_enough))
        step = int(rng.integers(1 + rollout, len(episodes[index].keyframes)))
        prompt = "" if rng.random() < options.empty_prompt else episodes[index].captions[step]
        state = draw_state(episodes[index], step - rollout, augmentation, empty_text, seed, rng)
        if rng.random() < augmentation.cropped:
            state = crop_memory(state, episodes[index].keyframes[step].world_from_keyframe, rng)
        states.append(replace(state, prompt=prompt))
        targets.append((index, step))
    if rollout:  # only a rollout reads the text here: the run encodes prompts with the weights that it trains
        texts = world.model.text_encoder.encode([state.prompt for state in states])
        states = [replace(state, text=text) for state, text in zip(states, texts, strict=True)]
        states = roll_out(world, episodes, states, targets, rollout)
    keyframes = [episodes[index].keyframes[step] for index, step in targets]
    cameras = torch.stack([keyframe.world_from_camera for keyframe in keyframes])
    map_views = world.map_views(states, cameras[:, None])
    rng = np.random.default_rng([seed, 1])  # a generator of its own: the draws above do not depend on the warps
    retrieved = retrieve_mixed(world, states, cameras[:, None], map_views, augmentation, rng)
    return Batch(
        latents=torch.stack([keyframe.latent for keyframe in keyframes]),
        cameras=cameras,
        history=torch.stack([state.history for state in states]),
        history_cameras=torch.stack([state.history_cameras for state in states]),
        prompts=[state.prompt for state in states],
        retrieved=retrieved,
    )


def roll_out(
    world: MosaicWorld,
    episodes: list[LiftedEpisode],
    states: list[WorldState],
    targets: list[tuple[int, int]],
    steps: int,
) -> list[WorldState]:
    """The states after the model has generated the `steps` steps before each target, along the recorded cameras.

    Args:
        states: each `steps` steps before its target.
        targets: (index of the episode, step) for each state.
    """
    for i in range(steps):
        poses = []
        for index, step in targets:
            cameras = episodes[index].keyframes[step - steps + i].world_from_camera.double().cpu().numpy()
            poses.append([Pose(camera) for camera in cameras])
        states, _ = world.generate(states, poses)
    return states
