"""Recorded episodes turned into what training needs: keyframes with estimated depth, and samples.

A sample is what play will meet: the latents of a place, recent ones before it, and a memory of some of
the episode's past, recalled by the very code that recalls in play.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import place_of
from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.keyframe import Keyframe, lift
from mosaic_gym.memory.mosaic import MosaicMemory, Retrieved
from mosaic_gym.memory.whereabouts import recognise_walk
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec, frames_to_float
from mosaic_gym.model.depth import DepthEstimator
from mosaic_gym.worlds.mosaic import MosaicWorld, WorldState

WARPS = ("both", "rope", "latent")
"""How a sample is told of its memory: by patches that lie where they land, by a grid of warped values, or by both."""
ASTRAY_RAD_PER_M = 0.12
"""How far headings are off for each metre that places are: about as in play."""


@dataclass(frozen=True)
class Remembered:
    """One recorded episode as its keyframes.

    Attributes:
        keyframes: one a step, of true latents and estimated depth.
        captions: one a step.
    """

    keyframes: list[Keyframe]
    captions: list[str]


@torch.no_grad()
def build_memories(
    store: EpisodeStore,
    codec: LinearCodec,
    depth: DepthEstimator,
    atlas: Atlas,
    limit: int | None = None,
    hinted: bool = False,
) -> list[Remembered]:
    """Encodes and lifts every recorded step once; depth is estimated and places are found, as they will be in play.

    Args:
        limit: episodes to take; None for all.
        hinted: whether the recording's own places are among those tried, for training: a sixth of the search, and the
            atlas still says which frames are recognised.

    Raises:
        ValueError: the atlas is of another map, or of frames of another size.
    """
    device = codec.mean.device
    k = torch.as_tensor(store.image_from_camera, dtype=torch.float32, device=device)
    remembered = []
    count = len(store) if limit is None else min(limit, len(store))
    for index in tqdm(range(count), desc="lifting episodes", unit="episode", mininterval=2.0):
        episode = store.load(index)
        frames = frames_to_float(episode["frames"][:].to(device))
        latents = codec.encode(frames)
        depth_m = depth.estimate(codec.decode(latents)[:, -1].clamp(-1, 1), k.expand(len(frames), 3, 3))
        cameras = episode["world_from_camera"][:].clone().to(device)  # a plain tensor, not the file
        true = torch.zeros(len(latents), *latents.shape[-2:], device=device)
        atlas.check_map(tuple(frames.shape[-2:]), place_of(cameras[:, -1]))
        if hinted:
            together = 20 if device.type == "cpu" else len(frames)  # a CPU's cache is small
            seen, hints = frames[:, -1].split(together), place_of(cameras[:, -1:]).split(together)
            places = torch.cat([atlas.find(some, k, hint, rounds=0) for some, hint in zip(seen, hints, strict=True)])
        else:
            places = recognise_walk(atlas, frames[:, -1], cameras[:, -1], k)
        keyframes = lift(latents, depth_m, cameras, k, true, range(len(latents)), places)
        remembered.append(Remembered(keyframes, store.captions(index)))
    return remembered


@dataclass(frozen=True)
class MemoryMix:
    """How much of the past a training sample may remember.

    Attributes:
        forget: share of samples with no memory; last_only: with the last frame only (before those they are away from).
        most: keyframes drawn from the past at most.
        worn: share of samples whose sources are degraded as generated ones are, against drift.
        wedge: share of samples for which memory ends somewhere across the view, as it does for a body that turns.
        away: share of samples that remember nothing of the last steps, as a body that has walked into its own dream.
        longest_away: so many steps at most.
        astray: places on the map are off by this standard deviation at most, metres. In play they are by 0.003 m in the
            median; of larger ones networks learn to mistrust the map.
        unplaced: share of samples none of whose frames was recognised, as in a world that is not of the map.
        alone: share of samples that are told of memory by one of the two warps alone, half of them by each.
    """

    forget: float = 0.15
    last_only: float = 0.4
    most: int = 24
    worn: float = 0.3
    wedge: float = 0.3
    away: float = 0.3
    longest_away: int = 24
    astray: float = 0.01
    unplaced: float = 0.5
    alone: float = 0.0


def choose_past(past: Sequence[Keyframe], mix: MemoryMix, rng: np.random.Generator) -> list[Keyframe]:
    """What a sample remembers of its past, oldest first."""
    if len(past) > 1 and rng.random() < mix.away:
        past = past[: -int(rng.integers(1, min(mix.longest_away, len(past) - 1) + 1))]
    kind = rng.random()
    if kind < mix.forget:
        return []
    if kind < mix.forget + mix.last_only:
        return list(past[-1:])
    count = min(len(past), int(rng.integers(1, mix.most + 1)))
    # Half the samples remember a stretch of the past, half single moments of it.
    if rng.random() < 0.5:
        first = int(rng.integers(0, len(past) - count + 1))
        chosen = list(past[first : first + count])
    else:
        chosen = [past[i] for i in np.sort(rng.choice(len(past), count, replace=False))]
    if rng.random() < 0.8 and chosen[-1] is not past[-1]:
        chosen.append(past[-1])
    return chosen


def gone_astray(keyframes: Sequence[Keyframe], metres: float, rng: np.random.Generator) -> list[Keyframe]:
    """Keyframes whose places on the map are all off by the same, mostly by far less than `metres`."""
    spread = metres * float(rng.uniform()) ** 2
    off = torch.tensor(rng.normal(size=3) * spread * np.array([1.0, 1.0, ASTRAY_RAD_PER_M]), dtype=torch.float32)
    shift = torch.cat([off, torch.zeros(1)])
    return [
        replace(keyframe, place=keyframe.place + shift.to(keyframe.place)) if keyframe.trust > 0 else keyframe
        for keyframe in keyframes
    ]


def draw_state(
    episode: Remembered, step: int, mix: MemoryMix, prompt_text: Tensor, seed: int, rng: np.random.Generator
) -> WorldState:
    """The state just before `step` (at least 1), with a random part of the past in memory."""
    past = episode.keyframes[:step]
    chosen = gone_astray(choose_past(past, mix, rng), mix.astray, rng)
    if rng.random() < mix.unplaced:
        chosen = [replace(keyframe, place=torch.zeros_like(keyframe.place)) for keyframe in chosen]
    history = past[-1].latent
    if rng.random() < mix.worn:
        wear = float(rng.uniform(0.2, 1.0))
        chosen = [worn(keyframe, wear, rng) for keyframe in chosen]
        history = worn(past[-1], wear, rng).latent
    return WorldState(
        pose=Pose(past[-1].world_from_keyframe.double().cpu().numpy()),
        history=history[None],
        history_cameras=past[-1].world_from_camera[None],
        memory=MosaicMemory(tuple(chosen)),
        prompt=episode.captions[step],
        text=prompt_text,
        seed=seed,
        step_index=step - 1,
    )


def draw_warp(mix: MemoryMix, rng: np.random.Generator) -> str:
    """How one sample is told of its memory: a member of `WARPS`."""
    if not mix.alone or rng.random() >= mix.alone:  # a mixture of none draws nothing, and leaves what is drawn next
        return "both"
    return ("rope", "latent")[int(rng.integers(2))]


def told_by(retrieved: Retrieved, nothing: Retrieved, warps: Sequence[str]) -> Retrieved:
    """What is recalled, each view told by one of the warps alone, or by both.

    Args:
        recalled: of some views, and `nothing`, what the same views recall of empty memories.
        warps: a member of `WARPS` for each view. `rope` leaves patches as tokens, where they land, beside a grid that
            nothing covers; `latent` leaves the warped grid, without patches.
    """
    if len(warps) != len(retrieved.warped):
        raise ValueError(f"{len(retrieved.warped)} views are told by as many warps; got {len(warps)}")
    if not set(warps) <= set(WARPS):
        raise ValueError(f"unknown warps {sorted(set(warps) - set(WARPS))}; the known ones are {', '.join(WARPS)}")
    rope, latent = (
        torch.tensor([warp == kind for warp in warps], device=retrieved.warped.device) for kind in ("rope", "latent")
    )
    grids = {}
    for name in (each.name for each in fields(Retrieved) if not each.name.startswith("patch")):
        full, empty = getattr(retrieved, name), getattr(nothing, name)
        grids[name] = torch.where(rope.view(-1, *[1] * (full.ndim - 1)), empty, full)
    return replace(retrieved, **grids, patch_exists=retrieved.patch_exists & ~latent[:, None])


def retrieve_mixed(
    world: MosaicWorld,
    states: Sequence[WorldState],
    cameras: Tensor,
    pictures: Sequence[Tensor | None] | None,
    mix: MemoryMix,
    rng: np.random.Generator,
) -> Retrieved:
    """What states recall for their next views from cameras `[b, t, 4, 4, 4]`, told as `mix` says.

    The paper's ablation has a mixture of the two warps ahead of either, on every column.

    Args:
        pictures: of the `b * t` views, as `MosaicWorld.pictures` draws them; None without a map.
    """
    retrieved = world.retrieve(states, cameras, pictures)
    warps = [draw_warp(mix, rng) for _ in states]
    if set(warps) == {"both"}:
        return retrieved
    empty = [replace(state, memory=replace(state.memory, keyframes=())) for state in states]
    nothing = world.retrieve(empty, cameras, pictures)
    return told_by(retrieved, nothing, [warp for warp in warps for _ in range(cameras.shape[1])])


def forget_a_wedge(state: WorldState, world_from_camera: Tensor, rng: np.random.Generator) -> WorldState:
    """The state without what its memory holds to one side of a line of sight.

    Args:
        world_from_camera: `[4, 4]`, the camera whose view is to be cut, metres.
    """
    angle_rad, side = float(rng.uniform(-0.6, 0.6)), float(rng.choice([-1.0, 1.0]))
    right, ahead = world_from_camera[:3, 0], world_from_camera[:3, 2]
    across = side * (np.cos(angle_rad) * right - np.sin(angle_rad) * ahead)
    cut = [
        keyframe.keeping((keyframe.points_m - world_from_camera[:3, 3]) @ across < 0)
        for keyframe in state.memory.keyframes
    ]
    return replace(state, memory=replace(state.memory, keyframes=tuple(cut)))


def worn(keyframe: Keyframe, wear: float, rng: np.random.Generator) -> Keyframe:
    """The keyframe as generations leave it: fine components faded, at full wear to a smear, and some noise.

    Components are sorted by loudness, so fading the later ones is a blur. In play, what was dreamt is recalled only
    where the place on the map is not known; so it has none.
    """
    channels = keyframe.latent.shape[0]
    kept = channels ** (1.0 - 0.75 * wear)
    order = torch.arange(channels, device=keyframe.latent.device)
    fade = 1.0 / (1.0 + (order / kept) ** 1.5)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = torch.randn(keyframe.latent.shape, generator=generator) * (0.15 * wear)
    latent = (keyframe.latent + noise.to(keyframe.latent.device)) * fade[:, None, None]
    generation = torch.full_like(keyframe.generation, float(rng.integers(1, 4)))
    return replace(keyframe, latent=latent, generation=generation, place=torch.zeros_like(keyframe.place))
