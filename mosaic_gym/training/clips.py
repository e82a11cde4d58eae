"""Samples for a pretrained Wan: a clip of a recorded episode, a memory of what came before it, and noise."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.training.keyframe_cache import FOLDER, load_or_lift_episodes, resize_frames
from mosaic_gym.training.precision import exact_products
from mosaic_gym.training.pretrained import PretrainedConfig, long_enough
from mosaic_gym.training.samples import LiftedEpisode, choose_keyframes, retrieve_mixed
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.state import WorldState


def lift_long_episodes(
    world: MosaicWorld, store: EpisodeStore, config: PretrainedConfig, accelerator: Accelerator
) -> dict[int, LiftedEpisode]:
    """The recorded episodes that are longer than a clip, as keyframes, stored in the run's folder."""
    return load_or_lift_episodes(world, store, long_enough(store, config), config.out / FOLDER, accelerator)


@exact_products()
@torch.no_grad()
def draw_sample(
    world: MosaicWorld,
    store: EpisodeStore,
    episodes: dict[int, LiftedEpisode],
    config: PretrainedConfig,
    seed: int,
    shortest: int,
) -> tuple[WorldState, Retrieved, Tensor, Tensor]:
    """Draws a clip of a recorded episode, and what a step of the world would have before it.

    Args:
        shortest: the smallest t, in latent frames; t is drawn evenly from there to `config.clip`.

    Returns:
        The state before the clip, what its memory retrieves for the clip's cameras, the clip's latents
        `[1, t, c, h, w]`, and its cameras `[1, t, 4, 4, 4]` (world_from_camera, metres).
    """
    rng = np.random.default_rng(seed)
    index = int(rng.choice(list(episodes)))
    episode = episodes[index]
    length = int(rng.integers(shortest, config.clip + 1))
    step = int(rng.integers(1, len(episode.keyframes) - length + 1))
    chosen = choose_keyframes(episode.keyframes[:step], config.augmentation, rng)
    prompt = "" if rng.random() < config.empty_prompt else episode.captions[step]
    recorded = store.load(index)["frames"][step - 1 : step + length]
    frames = resize_frames(recorded, (world.height, world.width)).to(world.device)
    clip = torch.cat([frames[0, -1:], frames[1:].flatten(0, 1)])[None]
    latents = world.model.codec.encode_clip(clip)  # [1, 1 + t, c, h, w]
    previous_camera = episode.keyframes[step - 1].world_from_keyframe
    state = WorldState(
        pose=Pose(previous_camera.double().cpu().numpy()),
        history=latents[0, :1],
        history_cameras=previous_camera.expand(1, FRAMES_PER_STEP, 4, 4),
        memory=MosaicMemory(tuple(chosen)),
        prompt=prompt,
        text=world.model.text_encoder.encode([prompt])[0],
        seed=seed,
        step_index=step - 1,
    )
    keyframes = episode.keyframes[step : step + length]
    cameras = torch.stack([keyframe.world_from_camera for keyframe in keyframes])[None]
    retrieved = retrieve_mixed(world, [state], cameras, None, config.augmentation, rng)
    return state, retrieved, latents[:, 1:], cameras


def draw_noise_level(generator: torch.Generator, shift: float, like: Tensor) -> Tensor:
    """A noise level sigma `[1]` in [0, 1], shifted towards noise as in Wan's schedule."""
    sigma = torch.rand(1, generator=generator).to(like)
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents at a noise level, and the velocity that the network has to predict (flow matching)."""
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1 - level) * clean + level * noise, noise - clean
