"""Recorded episodes as training samples: lifted to keyframes with estimated depth, with a random memory of the past.

A sample has the inputs of a step of the world: the latents of one step, the latents before it, and a memory of a part
of the episode's past, read by the same retrieval code. Its memory is augmented: left out in part or whole, cropped,
degraded, or given to the network by one of the two warps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import place_of
from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.keyframe import Keyframe, lift
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.memory.whereabouts import recognise_walk as find_places
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec, frames_to_float
from mosaic_gym.model.depth import DepthEstimator
from mosaic_gym.validation import Number, Whole, option, validate
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.state import WorldState

WARPS = ("both", "rope", "latent")
"""How the network gets a sample's memory: as patch tokens at warped rotary coordinates (Warped RoPE), as values
resampled onto the target grid (Warped Latent), or both."""
HEADING_NOISE_RAD_PER_M = 0.12
"""Noise of headings for each metre of noise of positions; about the measured ratio when the world is stepped."""


@dataclass(frozen=True)
class LiftedEpisode:
    """One recorded episode as keyframes.

    Attributes:
        keyframes: one a step, with encoded latents and estimated depth.
        captions: one a step.
    """

    keyframes: list[Keyframe]
    captions: list[str]


@torch.no_grad()
def lift_episodes(
    store: EpisodeStore,
    codec: LinearCodec,
    depth: DepthEstimator,
    atlas: Atlas,
    limit: int | None = None,
    hinted: bool = False,
) -> list[LiftedEpisode]:
    """Encodes and lifts every recorded step once, with depth and places estimated as they are when a world is stepped.

    Args:
        limit: the number of episodes; None for all.
        hinted: whether the search for a frame's place on the map also tries the recorded place, as in training. It
            takes a sixth of the time, and the atlas still decides which frames have a place.

    Raises:
        ValueError: the atlas is of another map, or of frames of another size.
    """
    device = codec.mean.device
    k = torch.as_tensor(store.image_from_camera, dtype=torch.float32, device=device)
    episodes = []
    count = len(store) if limit is None else min(limit, len(store))
    for index in tqdm(range(count), desc="lifting episodes", unit="episode", mininterval=2.0):
        episode = store.load(index)
        frames = frames_to_float(episode["frames"][:].to(device))
        latents = codec.encode(frames)
        depth_m = depth.estimate(codec.decode(latents)[:, -1].clamp(-1, 1), k.expand(len(frames), 3, 3))
        cameras = episode["world_from_camera"][:].clone().to(device)  # a plain tensor in memory, not the mapped file
        generations = torch.zeros(len(latents), *latents.shape[-2:], device=device)  # 0: nothing is generated
        atlas.check_map(tuple(frames.shape[-2:]), place_of(cameras[:, -1]))
        if hinted:
            chunk = 20 if device.type == "cpu" else len(frames)  # a CPU's cache is small
            pairs = zip(frames[:, -1].split(chunk), place_of(cameras[:, -1:]).split(chunk), strict=True)
            places = torch.cat([atlas.find(images, k, hints, rounds=0) for images, hints in pairs])
        else:
            places = find_places(atlas, frames[:, -1], cameras[:, -1], k)
        keyframes = lift(latents, depth_m, cameras, k, generations, range(len(latents)), places)
        episodes.append(LiftedEpisode(keyframes, store.captions(index)))
    return episodes


@dataclass(frozen=True)
class MemoryAugmentation:
    """How the memories of training samples vary. All but the counts and `place_noise_m` are shares of samples."""

    no_memory: Annotated[float, Number(0.0, 1.0)] = 0.15
    """Share of samples with an empty memory (memory dropout)."""
    last_only: Annotated[float, Number(0.0, 1.0)] = 0.4
    """Share of samples with the latest keyframe alone; the latest that --augmentation.no-recent leaves."""
    max_keyframes: Annotated[int, Whole(1)] = 24
    """Most keyframes that are drawn from the past."""
    degraded: Annotated[float, Number(0.0, 1.0)] = 0.3
    """Share of samples whose keyframes are degraded like generated ones, against drift."""
    cropped: Annotated[float, Number(0.0, 1.0)] = 0.3
    """Share of samples whose memory ends at a line across the view, as it does when a camera turns."""
    no_recent: Annotated[float, Number(0.0, 1.0)] = 0.3
    """Share of samples whose memory lacks the last steps, as after a walk into new places."""
    max_recent_steps: Annotated[int, Whole(1)] = 24
    """Most steps that --augmentation.no-recent leaves out."""
    place_noise_m: Annotated[float, Number(0.0)] = 0.01
    """Largest standard deviation of the noise of places on the map, metres. When the world is stepped their error is
    0.003 m in the median; with more noise the networks learn to ignore the map."""
    no_place: Annotated[float, Number(0.0, 1.0)] = 0.5
    """Share of samples in which no frame has a place on the map, as in a world of another map."""
    single_warp: Annotated[float, Number(0.0, 1.0)] = 0.0
    """Share of samples whose memory the network gets by one of the two warps alone, half of them by each."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        validate(self, lambda name: option(f"augmentation.{name}"))
        if self.no_memory + self.last_only > 1.0:
            raise ValueError(
                "--augmentation.no-memory and --augmentation.last-only are shares of the same samples, together at "
                f"most 1; got {self.no_memory} and {self.last_only}"
            )


def choose_keyframes(
    past: Sequence[Keyframe], augmentation: MemoryAugmentation, rng: np.random.Generator
) -> list[Keyframe]:
    """The keyframes of the past that are in a sample's memory, oldest first."""
    if len(past) > 1 and rng.random() < augmentation.no_recent:
        past = past[: -int(rng.integers(1, min(augmentation.max_recent_steps, len(past) - 1) + 1))]
    kind = rng.random()
    if kind < augmentation.no_memory:
        return []
    if kind < augmentation.no_memory + augmentation.last_only:
        return list(past[-1:])
    count = min(len(past), int(rng.integers(1, augmentation.max_keyframes + 1)))
    # Half of the samples have a stretch of the past, half have single moments of it.
    if rng.random() < 0.5:
        first = int(rng.integers(0, len(past) - count + 1))
        chosen = list(past[first : first + count])
    else:
        chosen = [past[i] for i in np.sort(rng.choice(len(past), count, replace=False))]
    if rng.random() < 0.8 and chosen[-1] is not past[-1]:
        chosen.append(past[-1])
    return chosen


def add_place_noise(keyframes: Sequence[Keyframe], most_m: float, rng: np.random.Generator) -> list[Keyframe]:
    """Keyframes whose places on the map are all shifted by the same noise; those without a place stay as they are.

    Args:
        most_m: the largest standard deviation, metres. It is drawn as `most_m * u**2`, u uniform in [0, 1], so mostly
            far smaller.
    """
    deviation = most_m * float(rng.uniform()) ** 2
    scales = np.array([1.0, 1.0, HEADING_NOISE_RAD_PER_M])
    noise = torch.tensor(rng.normal(size=3) * deviation * scales, dtype=torch.float32)
    shift = torch.cat([noise, torch.zeros(1)])
    return [
        replace(keyframe, place=keyframe.place + shift.to(keyframe.place)) if keyframe.trust > 0 else keyframe
        for keyframe in keyframes
    ]


def draw_state(
    episode: LiftedEpisode,
    step: int,
    augmentation: MemoryAugmentation,
    text: Tensor,
    seed: int,
    rng: np.random.Generator,
) -> WorldState:
    """The state just before `step` (at least 1), with a random part of the past in its memory.

    Args:
        text: `[l, d]`, the encoded prompt.
    """
    past = episode.keyframes[:step]
    chosen = add_place_noise(choose_keyframes(past, augmentation, rng), augmentation.place_noise_m, rng)
    if rng.random() < augmentation.no_place:
        chosen = [replace(keyframe, place=torch.zeros_like(keyframe.place)) for keyframe in chosen]
    history = past[-1].latent
    if rng.random() < augmentation.degraded:
        severity = float(rng.uniform(0.2, 1.0))
        chosen = [degrade(keyframe, severity, rng) for keyframe in chosen]
        history = degrade(past[-1], severity, rng).latent
    return WorldState(
        pose=Pose(past[-1].world_from_keyframe.double().cpu().numpy()),
        history=history[None],
        history_cameras=past[-1].world_from_camera[None],
        memory=MosaicMemory(tuple(chosen)),
        prompt=episode.captions[step],
        text=text,
        seed=seed,
        step_index=step - 1,
    )


def crop_memory(state: WorldState, world_from_camera: Tensor, rng: np.random.Generator) -> WorldState:
    """The state without the patches of its memory to one side of a random vertical plane through a camera.

    Args:
        world_from_camera: `[4, 4]`, the camera whose view is cut, metres.
    """
    angle_rad, side = float(rng.uniform(-0.6, 0.6)), float(rng.choice([-1.0, 1.0]))
    right, forward = world_from_camera[:3, 0], world_from_camera[:3, 2]
    normal = side * (np.cos(angle_rad) * right - np.sin(angle_rad) * forward)
    cropped = [
        keyframe.masked((keyframe.points_m - world_from_camera[:3, 3]) @ normal < 0)
        for keyframe in state.memory.keyframes
    ]
    return replace(state, memory=replace(state.memory, keyframes=tuple(cropped)))


def degrade(keyframe: Keyframe, severity: float, rng: np.random.Generator) -> Keyframe:
    """The keyframe as if it had been generated: its fine components fade, and noise is added.

    The codec's channels are sorted by variance, so fading the later ones is a blur. The result has no place on the map:
    when the world is stepped, generated keyframes are retrieved only where the place is unknown.

    Args:
        severity: 0 to 1; the first `channels ** (1 - 0.75 * severity)` channels keep at least half of their amplitude.
    """
    channels = keyframe.latent.shape[0]
    half = channels ** (1.0 - 0.75 * severity)
    order = torch.arange(channels, device=keyframe.latent.device)
    fade = 1.0 / (1.0 + (order / half) ** 1.5)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = torch.randn(keyframe.latent.shape, generator=generator) * (0.15 * severity)
    latent = (keyframe.latent + noise.to(keyframe.latent.device)) * fade[:, None, None]
    generation = torch.full_like(keyframe.generation, float(rng.integers(1, 4)))
    return replace(keyframe, latent=latent, generation=generation, place=torch.zeros_like(keyframe.place))


def draw_warp(augmentation: MemoryAugmentation, rng: np.random.Generator) -> str:
    """How the network gets one sample's memory: a member of `WARPS`."""
    share = augmentation.single_warp
    if not share or rng.random() >= share:  # a share of 0 draws nothing, so later draws are the same as without it
        return "both"
    return ("rope", "latent")[int(rng.integers(2))]


def select_warps(retrieved: Retrieved, empty: Retrieved, warps: Sequence[str]) -> Retrieved:
    """The results of retrieval, reduced to one of the two warps for each view as `warps` lists them.

    Args:
        retrieved: for some views.
        empty: for the same views from empty memories.
        warps: a member of `WARPS` for each view. `rope` keeps the patch tokens beside an empty grid; `latent` keeps
            the warped grid without patch tokens.

    Raises:
        ValueError: another number of warps than of views, or an unknown warp.
    """
    if len(warps) != len(retrieved.warped_latent):
        raise ValueError(f"{len(retrieved.warped_latent)} views take as many warps; got {len(warps)}")
    if not set(warps) <= set(WARPS):
        raise ValueError(f"unknown warps {sorted(set(warps) - set(WARPS))}; the known ones are {', '.join(WARPS)}")
    rope, latent = (
        torch.tensor([warp == kind for warp in warps], device=retrieved.warped_latent.device)
        for kind in ("rope", "latent")
    )
    grids = {}
    for name in (part.name for part in fields(Retrieved) if not part.name.startswith("patch")):
        own, none = getattr(retrieved, name), getattr(empty, name)
        grids[name] = torch.where(rope.view(-1, *[1] * (own.ndim - 1)), none, own)
    return replace(retrieved, **grids, patch_exists=retrieved.patch_exists & ~latent[:, None])


def retrieve_mixed(
    world: MosaicWorld,
    states: Sequence[WorldState],
    cameras: Tensor,
    map_views: Sequence[Tensor | None] | None,
    augmentation: MemoryAugmentation,
    rng: np.random.Generator,
) -> Retrieved:
    """Retrieval for the states' next views, with the mixture of warps that `augmentation` asks for.

    In the ablation of the MosaicMem paper (arXiv 2603.17117) a mixture of the two warps is better than either alone in
    every column.

    Args:
        cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        map_views: of the `b * t` views, from `MosaicWorld.map_views`; None without a map.
    """
    retrieved = world.retrieve(states, cameras, map_views)
    warps = [draw_warp(augmentation, rng) for _ in states]
    if set(warps) == {"both"}:
        return retrieved
    without = [replace(state, memory=replace(state.memory, keyframes=())) for state in states]
    empty = world.retrieve(without, cameras, map_views)
    return select_warps(retrieved, empty, [warp for warp in warps for _ in range(cameras.shape[1])])
