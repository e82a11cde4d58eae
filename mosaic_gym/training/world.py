"""Recipe: the world model. One flat loop; what it meets is what play meets.

Every sample is a recorded place, remembered in part (memory dropout), recalled with estimated depth by the
code that recalls in play, its memory sometimes worn, and sometimes reached through the model's own dream.

Every sample is told of its memory by both warps, as a step in play is; the shipped weights were made so. The paper
mixes: `--mix.alone 0.67` tells a third of the samples by both, and a third by each alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.model.codec import LinearCodec, frames_to_uint8
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.parts import fingerprint_of, round_to_half
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.training.batches import MAX_ROLLED, batches, roll_ahead
from mosaic_gym.training.run import Run, budget_of, exact_products, recipe_of
from mosaic_gym.training.samples import MemoryMix, Remembered, build_memories, draw_state
from mosaic_gym.worlds.mosaic import MosaicWorld

BY_ITSELF = 0.5
"""What the transformer's own frames count beside the finished ones: planners look at its latents alone."""
AWAY_ROLLED = 2
"""Steps that the model has dreamt before those that it is validated on away from what it remembers."""
SOFTENING = 2e-4
"""Squared error, on the scale of [-1, 1], below which a sample is good enough not to be pressed further: 43 dB,
about what memory and map let expect one step ahead."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train world` takes. With --from it fine-tunes a pretrained Wan model, and takes other options:
    `mosaic-gym train world --from --help`."""

    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    codec: Path = Path("runs/codec")
    """What `train codec` wrote."""
    depth: Path = Path("runs/depth/weights")
    """What `train depth` wrote."""
    reward_heads: Path = Path("runs/reward_heads/weights")
    """What `train reward-heads` wrote."""
    atlas: Path = Path("runs/atlas/weights")
    """What `train atlas` wrote."""
    begin: Path | None = None
    """A finished world to go on from, with a budget of its own; its parts are taken instead of those above."""
    out: Path = Path("runs/world")
    """The run's folder: checkpoints, log, and the finished world in `weights/`."""
    minutes: float | None = None
    """Wall time of training, earlier pieces included and reading the recording left out; 62 without --steps."""
    steps: int | None = None
    """Optimiser steps of the whole run, instead of minutes."""
    batch: int = 12
    """Samples in a batch."""
    learning_rate: float = 1e-3
    """The peak."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of 64 numbers each; the network's width is 64 times this."""
    ffn: int = 768
    """Width of the blocks' feed-forward part."""
    dream: float = 0.2
    """Share of batches whose last one to three steps before the target are the model's own dream."""
    noise_only: float = 0.85
    """Share of samples at full noise, where one-step sampling begins; the rest are spread over all levels."""
    empty_prompt: float = 0.1
    """Share of samples whose prompt is empty."""
    mix: MemoryMix = field(default_factory=MemoryMix)
    """How much of the past a sample remembers, and by which warps it is told."""
    episodes: int | None = None
    """Recorded episodes to use; None for all."""
    precision: str = "no"
    """`no` (float32), or `bf16` on an accelerator."""
    workers: int = 0
    """Processes that draw batches ahead, where forking is possible; 0 draws them between steps. On an accelerator, as
    many as there are cores."""
    reuse: int = 1
    """How often a sample is met, on average. More than once where an accelerator trains faster than workers draw."""
    compiled: bool = False
    """Compile the transformer (pays on an accelerator)."""


class Learner(nn.Module):
    """What is trained, as one module: the transformer, the detail network and the prompt's encoder."""

    def __init__(
        self,
        transformer: MosaicTransformer3DModel,
        refiner: Refiner,
        text_encoder: ByteTextEncoder,
        codec: LinearCodec,
    ):
        super().__init__()
        self.transformer = transformer
        self.refiner = refiner
        self.codec = codec
        self.text_encoder = text_encoder

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        tokens: Tensor,
        history: Tensor,
        history_cameras: Tensor,
        retrieved: Retrieved,
        cameras: Tensor,
        k: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """The frames `[b, 4, 3, H, W]` believed to be behind `noisy`: the transformer's, and touched up."""
        text = self.text_encoder(tokens)
        context = self.transformer.read(history, history_cameras, retrieved, cameras[:, None], k, size, text)
        latents = self.transformer(noisy[:, None], sigma * TIMESTEPS, context)[:, 0]
        believed = self.codec.decode(latents)
        told = retrieved.warped_frames, retrieved.pictures, retrieved.warp_uncertainty, retrieved.memory_weight
        return believed, self.refiner(believed, *told)


def frame_loss(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over samples of the log of their squared error (frames `[b, 4, 3, H, W]`), and that error in dB.

    The softened log keeps views that nobody could know from drowning the rest; a plain log would do the opposite,
    and spend the gradient on the grain of what memory already shows.
    """
    error = (predicted - true).square().mean((1, 2, 3, 4))
    return torch.log(error + SOFTENING).mean(), -10 * torch.log10(error.detach().mean() / 4.0)


def build(config: Config, store: EpisodeStore) -> WorldModel:
    """A fresh world around the fitted codec and the trained depth estimator, heads and atlas.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    told = {"low_cpu_mem_usage": False, "use_safetensors": True}
    for part in ("codec", "depth", "reward_heads", "atlas"):
        folder = getattr(config, part)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"nothing is trained under {folder}: run `mosaic-gym train {part.replace('_', '-')}` first, or say "
                f"where it is (--{part.replace('_', '-')})"
            )
    codec = LinearCodec.from_pretrained(config.codec, **told)
    depth = ConvDepth.from_pretrained(config.depth, **told)
    reward_heads = RewardTerminationHeads.from_pretrained(config.reward_heads, **told)
    atlas = Atlas.from_pretrained(config.atlas, **told)
    text_encoder = ByteTextEncoder()
    transformer = MosaicTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=config.heads,
        attention_head_dim=64,
        in_channels=codec.channels,
        out_channels=codec.channels,
        text_dim=text_encoder.config.width,
        freq_dim=128,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        insertion="split",
        causal=True,
        rope_theta=100.0,
        metres_per_unit=4.0,
    )
    images, prompts = start_views(store)
    settings = WorldSettings(
        height=images.shape[1],
        width=images.shape[2],
        image_from_camera=tuple(tuple(map(float, row)) for row in store.image_from_camera),
        control=control_settings(Control()),
        scenario=store.told(0)["scenario"],
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    parts = transformer, Refiner(), codec, text_encoder, depth, reward_heads, atlas, scheduler
    return WorldModel(settings, *parts, images, prompts)


def start_views(store: EpisodeStore, count: int = 32) -> tuple[Tensor, tuple[str, ...]]:
    """First frames (uint8 `[n, H, W, 3]`) and captions of episodes spread over the store."""
    chosen = np.unique(np.linspace(0, len(store) - 1, count).round().astype(int))
    images = torch.stack([store.load(int(index))["frames"][0, -1] for index in chosen])
    return images, tuple(store.captions(int(index))[0] for index in chosen)


@exact_products()
@torch.no_grad()
def validate(world: MosaicWorld, episodes: list[Remembered], run: Run, count: int = 32) -> dict[str, float]:
    """One step on held-out episodes, in dB, and by how much the networks are better than what they are given.

    *Ahead* has all of the past in memory; *away* nothing of the last steps, and has dreamt the last `AWAY_ROLLED`;
    *lost* has nothing of the last steps either, and its place on the map is not known.
    """
    ahead = MemoryMix(forget=0.0, last_only=0.0, most=1000, worn=0.0, away=0.0, unplaced=0.0)
    away = replace(ahead, away=1.0)
    lost = replace(away, unplaced=1.0)
    codec, unread = world.model.codec, world.model.text_encoder.encode([""])[0]
    told = {}
    for name, mix, dreamt in (("ahead", ahead, 0), ("away", away, AWAY_ROLLED), ("lost", lost, 0)):
        rng = np.random.default_rng(0)
        states, members = [], []
        for _ in range(count):
            index = int(rng.integers(len(episodes)))
            length = len(episodes[index].keyframes)
            step = int(rng.integers(max(length // 2, 1 + dreamt), length))
            states.append(draw_state(episodes[index], step - dreamt, mix, unread, 0, rng))
            members.append((index, step))
        texts = world.model.text_encoder.encode([episodes[index].captions[step] for index, step in members])
        states = [replace(state, text=text) for state, text in zip(states, texts, strict=True)]
        states = roll_ahead(world, episodes, states, members, dreamt)
        targets = [episodes[index].keyframes[step] for index, step in members]
        true = codec.decode(torch.stack([target.latent for target in targets]))
        cameras = torch.stack([target.world_from_camera for target in targets])[:, None]
        given = codec.decode(world.retrieve(states, cameras, world.pictures(states, cameras)).conditioning_latent)
        after = roll_ahead(world, episodes, states, [(index, step + 1) for index, step in members], 1)
        shown = codec.decode(torch.cat([state.history[-1:] for state in after]))
        # A view from where the body rests is exact; it counts as 50 dB.
        errors = [(each.clamp(-1, 1) - true).square().mean((1, 2, 3, 4)).clamp_min(4e-5) for each in (shown, given)]
        mine, before = (float((10 * torch.log10(4.0 / error)).mean()) for error in errors)
        told |= {f"{name}_db": mine, f"{name}_gain_db": mine - before}
        if name == "lost" and run.writer:
            columns = [frames_to_uint8(frames[:6, -1]).flatten(0, 1).cpu() for frames in (true, shown, given)]
            run.writer.add_image("engine_dream_given", torch.cat(columns, dim=1), run.step_index, dataformats="HWC")
    return told


def _check_long_enough(config: Config, episodes: list[Remembered], heldout: list[Remembered]) -> None:
    """Raises ValueError if there is nothing to draw a sample from."""
    least, least_heldout = MAX_ROLLED + 2 if config.dream else 2, AWAY_ROLLED + 2
    shortest = min(len(each.keyframes) for each in heldout)
    if max(len(each.keyframes) for each in episodes) < least or shortest < least_heldout:
        raise ValueError(
            f"the episodes under {config.data} are too short: one of at least {least} steps is needed, and every "
            f"held-out one of {least_heldout}; record longer ones (--steps-per-episode)"
        )


def train(config: Config) -> WorldModel:
    """Trains, validates as it goes, and writes the finished world with its averaged weights, rounded to float16."""
    budget = budget_of(config, minutes=62.0)
    torch.manual_seed(0)
    # As errors shrink, some gradients fall below what a float32 can hold normally, and a CPU takes 2.5 times as long.
    torch.set_flush_denormal(True)
    accelerator = Accelerator(mixed_precision=config.precision)
    store = EpisodeStore(config.data, "train")
    model = build(config, store) if config.begin is None else WorldModel.from_pretrained(config.begin)
    device = accelerator.device
    model.codec.to(device)
    model.depth.to(device).eval()
    model.atlas.to(device).eval()
    networks = model.codec, model.depth, model.atlas
    episodes = build_memories(store, *networks, config.episodes, hinted=True)
    heldout = build_memories(EpisodeStore(config.data, "heldout"), *networks, config.episodes, hinted=True)
    _check_long_enough(config, episodes, heldout)
    learner = Learner(model.transformer, model.refiner, model.text_encoder, model.codec)
    # What is learnt against is not the run's to change: a resumed one must meet the same.
    parts = fingerprint_of((model.codec, model.depth, model.reward_heads, model.atlas))
    given = {"begin": config.begin, "parts": parts, "recipe": recipe_of(config, store)}
    run = Run(config.out, learner, config.learning_rate, *budget, accelerator, **given)
    # The dreaming world holds the averaged weights, which are what ships; the run keeps them up to date.
    average = run.average
    model.transformer, model.refiner, model.text_encoder = average.transformer, average.refiner, average.text_encoder
    world = MosaicWorld(model, device=str(device), denoising_steps=1)
    size = (world.height, world.width)
    k = torch.tensor(model.settings.image_from_camera, device=device).expand(config.batch, 3, 3)
    step_of = torch.compile(run.model) if config.compiled else run.model
    drawn = batches(world, episodes, config, run)
    told: dict[str, float] = {}
    while not run.finished:
        generator = run.generator()
        # 1. Some moments before recorded ones, and what their memories give for the next view.
        batch = next(drawn)
        # 2. Noise: most samples at the level where one-step sampling begins.
        sigma = torch.rand(config.batch, generator=generator)
        sigma = torch.where(torch.rand(config.batch, generator=generator) < config.noise_only, 1.0, sigma).to(device)
        noise = torch.randn(batch.latents.shape, generator=run.generator(device), device=device)
        level = sigma.view(-1, 1, 1, 1)
        noisy = (1 - level) * batch.latents + level * noise
        # 3. The networks say what is behind the noise.
        with accelerator.autocast():
            believed, predicted = step_of(
                noisy,
                sigma,
                model.text_encoder.tokenize(batch.prompts),
                batch.history,
                batch.history_cameras,
                batch.retrieved,
                batch.cameras,
                k,
                size,
            )
        true = model.codec.decode(batch.latents)
        loss, decibels = frame_loss(predicted.float(), true)
        by_itself, _ = frame_loss(believed.float(), true)
        run.update(loss + BY_ITSELF * by_itself, {"db": decibels, **told})
        if run.step_index % (500 * config.reuse) == 0:
            told = validate(world, heldout, run)
    for name in ("transformer", "refiner", "text_encoder"):  # copies: a longer run goes on from what is not rounded
        setattr(model, name, copy.deepcopy(getattr(model, name)))
        round_to_half(getattr(model, name))
    print("world: one step on held-out episodes:", validate(world, heldout, run))
    run.close()
    model.save_pretrained(config.out / "weights")
    return model
