"""Recipe: the world model, in one flat loop, on samples like its inputs when it is stepped.

A sample is a recorded step with a part of the episode's past in memory (memory dropout), read by the same retrieval
code and with estimated depth. Sometimes its memory is degraded, and sometimes the model has generated the steps before
it (scheduled sampling).

The network gets every sample's memory by both warps, as it does when the world is stepped; the shipped weights were
trained so. The paper mixes: `--augmentation.single-warp 0.67` gives a third of the samples both warps, and a third
each warp alone.
"""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import LinearCodec, frames_to_uint8
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.parts import fingerprint_of, round_to_half
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.settings import WorldSettings
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.training.batches import MAX_ROLLOUT, Batch, BatchOptions, batches, roll_out
from mosaic_gym.training.budget import budget_of, check_one_budget, recipe_of
from mosaic_gym.training.precision import exact_products, float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.training.samples import LiftedEpisode, MemoryAugmentation, draw_state, lift_episodes
from mosaic_gym.validation import Folder, Number, OneOf, Whole, option
from mosaic_gym.worlds.mosaic import MosaicWorld

UNREFINED_WEIGHT = 0.5
"""Weight of the loss of unrefined frames beside that of refined ones: planners use the transformer's latents alone."""
HELDOUT_ROLLOUT = 2
"""Steps that the model generates before those that it is validated on without recent memory."""
ERROR_FLOOR = 2e-4
"""Squared error, on the scale of [-1, 1], below which a sample's loss flattens: 43 dB, about what memory and map allow
one step ahead."""
TRAINED = ("transformer", "refiner", "text_encoder")
"""The networks that this recipe trains, by their attributes in `WorldModel`."""
PARTS = {"codec": LinearCodec, "depth": ConvDepth, "reward_heads": RewardTerminationHeads, "atlas": Atlas}
"""The classes of the finished networks that it trains against, by the config's fields."""


@dataclass(frozen=True)
class Config(BatchOptions):
    """Train the world model on recorded episodes. With --from, fine-tune a pretrained Wan model instead; its options:
    `mosaic-gym train world --from --help`."""

    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    codec: Annotated[Path, Folder()] = Path("runs/codec")
    """Folder that `train codec` wrote."""
    depth: Annotated[Path, Folder()] = Path("runs/depth/weights")
    """Folder that `train depth` wrote."""
    reward_heads: Annotated[Path, Folder()] = Path("runs/reward_heads/weights")
    """Folder that `train reward-heads` wrote."""
    atlas: Annotated[Path, Folder()] = Path("runs/atlas/weights")
    """Folder that `train atlas` wrote."""
    begin: Annotated[Path | None, Folder()] = None
    """A finished world to start from, with a budget of its own; its parts are taken instead of those above."""
    out: Annotated[Path, Folder()] = Path("runs/world")
    """The run's folder: checkpoints, log, and the finished world in `weights/`."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included, without the time to read the recording; 62 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    learning_rate: Annotated[float, Number(0.0)] = 1e-3
    """The peak."""
    layers: Annotated[int, Whole(1)] = 4
    """Transformer blocks."""
    heads: Annotated[int, Whole(1)] = 4
    """Attention heads of 64 channels each; the network's width is 64 times this."""
    ffn: Annotated[int, Whole(1)] = 768
    """Width of the blocks' feed-forward part."""
    noise_only: Annotated[float, Number(0.0, 1.0)] = 0.85
    """Share of samples at full noise, where one-step sampling starts; the rest are spread over all levels."""
    episodes: Annotated[int | None, Whole(1)] = None
    """Recorded episodes to use; None for all."""
    precision: Annotated[str, OneOf("no", "bf16")] = "no"
    """`no` (float32), or `bf16` on an accelerator."""
    compiled: bool = False
    """Compile the transformer; faster on an accelerator."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, reuse beside rollouts, or both budgets."""
        super().__post_init__()
        check_one_budget(self)


class TrainedNetworks(nn.Module):
    """The trained networks as one module: transformer, refiner and text encoder, with the fixed codec between them."""

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
        """Predicted clean frames `[b, 4, 3, H, W]`: decoded from the transformer's latents, and the same refined.

        Args:
            noisy: `[b, c, h, w]`, latents at the noise levels sigma `[b]`.
            tokens: the tokenized prompts; the other arguments are as `Batch` describes them.
        """
        text = self.text_encoder(tokens)
        context = self.transformer.read(history, history_cameras, retrieved, cameras[:, None], k, size, text)
        latents = self.transformer(noisy[:, None], sigma * TIMESTEPS, context)[:, 0]
        decoded = self.codec.decode(latents)
        views = retrieved.warped_frames, retrieved.pictures, retrieved.warp_uncertainty, retrieved.memory_weight
        return decoded, self.refiner(decoded, *views)


def frame_loss(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over samples of the log of their squared error (frames `[b, 4, 3, H, W]`), and that error in dB.

    With a plain squared error, views that cannot be predicted would dominate. With a log without a floor, the gradient
    would go into noise of views that memory already shows.
    """
    error = (predicted - true).square().mean((1, 2, 3, 4))
    return torch.log(error + ERROR_FLOOR).mean(), -10 * torch.log10(error.detach().mean() / 4.0)


def build(config: Config, store: EpisodeStore) -> WorldModel:
    """A fresh world around the fitted codec and the trained depth estimator, reward heads and atlas.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    parts = {}
    for name, kind in PARTS.items():
        folder = getattr(config, name)
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"there are no trained weights in {folder}: run `mosaic-gym train {name.replace('_', '-')}` first, or "
                f"give their folder ({option(name)})"
            )
        parts[name] = kind.from_pretrained(folder, low_cpu_mem_usage=False, use_safetensors=True)
    codec, text_encoder = parts["codec"], ByteTextEncoder()
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
        scenario=store.metadata(0)["scenario"],
    )
    return WorldModel(
        settings=settings,
        transformer=transformer,
        refiner=Refiner(),
        text_encoder=text_encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        start_images=images,
        start_prompts=prompts,
        **parts,
    )


def start_views(store: EpisodeStore, count: int = 32) -> tuple[Tensor, tuple[str, ...]]:
    """First frames (uint8 `[n, H, W, 3]`) and captions of episodes spread over the store."""
    chosen = np.unique(np.linspace(0, len(store) - 1, count).round().astype(int))
    images = torch.stack([store.load(int(index))["frames"][0, -1] for index in chosen])
    return images, tuple(store.captions(int(index))[0] for index in chosen)


@exact_products()
@torch.no_grad()
def heldout_metrics(world: MosaicWorld, episodes: list[LiftedEpisode], run: Run, count: int = 32) -> dict[str, float]:
    """PSNR one step ahead on held-out episodes, in dB, and its gain over the conditioning latent of memory and map.

    `full_memory` has all of the past in memory. `no_recent` has nothing of the last steps, and the model has generated
    the last `HELDOUT_ROLLOUT`. `no_place` has nothing of the last steps either, and no place on the map.
    """
    full = MemoryAugmentation(
        no_memory=0.0, last_only=0.0, max_keyframes=1000, degraded=0.0, no_recent=0.0, no_place=0.0
    )
    no_recent = replace(full, no_recent=1.0)
    variants = {
        "full_memory": (full, 0),
        "no_recent": (no_recent, HELDOUT_ROLLOUT),
        "no_place": (replace(no_recent, no_place=1.0), 0),
    }
    codec, text_encoder = world.model.codec, world.model.text_encoder
    empty_text = text_encoder.encode([""])[0]
    metrics = {}
    for name, (augmentation, rollout) in variants.items():
        rng = np.random.default_rng(0)
        states, targets = [], []
        for _ in range(count):
            index = int(rng.integers(len(episodes)))
            length = len(episodes[index].keyframes)
            step = int(rng.integers(max(length // 2, 1 + rollout), length))
            states.append(draw_state(episodes[index], step - rollout, augmentation, empty_text, 0, rng))
            targets.append((index, step))
        texts = text_encoder.encode([episodes[index].captions[step] for index, step in targets])
        states = [replace(state, text=text) for state, text in zip(states, texts, strict=True)]
        states = roll_out(world, episodes, states, targets, rollout)
        keyframes = [episodes[index].keyframes[step] for index, step in targets]
        true = codec.decode(torch.stack([keyframe.latent for keyframe in keyframes]))
        cameras = torch.stack([keyframe.world_from_camera for keyframe in keyframes])[:, None]
        retrieved = world.retrieve(states, cameras, world.map_views(states, cameras))
        conditioning = codec.decode(retrieved.conditioning_latent)
        after = roll_out(world, episodes, states, [(index, step + 1) for index, step in targets], 1)
        generated = codec.decode(torch.cat([state.history[-1:] for state in after]))
        errors = ((frames.clamp(-1, 1) - true).square().mean((1, 2, 3, 4)) for frames in (generated, conditioning))
        # The floor counts a view of a camera that stands still, whose error is 0, as 50 dB.
        psnr, before = (float((10 * torch.log10(4.0 / error.clamp_min(4e-5))).mean()) for error in errors)
        metrics |= {f"{name}_db": psnr, f"{name}_gain_db": psnr - before}
        if name == "no_place" and run.writer:
            columns = [frames[:6, -1] for frames in (true, generated, conditioning)]
            sheet = torch.cat([frames_to_uint8(frames).flatten(0, 1) for frames in columns], dim=1)
            run.writer.add_image("true_generated_conditioning", sheet.cpu(), run.step_index, dataformats="HWC")
    return metrics


def check_lengths(config: Config, episodes: list[LiftedEpisode], heldout: list[LiftedEpisode]) -> None:
    """Raises ValueError if episodes are too short to draw samples from."""
    least, least_heldout = MAX_ROLLOUT + 2 if config.rollout else 2, HELDOUT_ROLLOUT + 2
    longest = max(len(episode.keyframes) for episode in episodes)
    if longest < least or min(len(episode.keyframes) for episode in heldout) < least_heldout:
        raise ValueError(
            f"the episodes under {config.data} are too short: one of at least {least} steps is needed, and every "
            f"held-out one of {least_heldout}; record longer ones (--steps-per-episode)"
        )


def add_noise(batch: Batch, config: Config, run: Run) -> tuple[Tensor, Tensor]:
    """The batch's latents with noise `[b, c, h, w]`, and its levels sigma `[b]`, mostly 1."""
    device, generator = batch.latents.device, run.generator()
    sigma = torch.rand(config.batch, generator=generator)
    sigma = torch.where(torch.rand(config.batch, generator=generator) < config.noise_only, 1.0, sigma).to(device)
    noise = torch.randn(batch.latents.shape, generator=run.generator(device), device=device)
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * batch.latents + level * noise, sigma


@float32_by_default()
def train(config: Config) -> WorldModel:
    """Trains, validates on the way, and writes the finished world with its averaged weights, rounded to float16."""
    budget = budget_of(config, minutes=62.0)
    torch.manual_seed(0)
    # As errors shrink, some gradients become denormal float32 numbers, with which a CPU takes 2.5 times as long.
    torch.set_flush_denormal(True)
    accelerator = Accelerator(mixed_precision=config.precision)
    device = accelerator.device
    store = EpisodeStore(config.data, "train")
    model = build(config, store) if config.begin is None else WorldModel.from_pretrained(config.begin)
    model.codec.to(device)
    model.depth.to(device).eval()
    model.atlas.to(device).eval()
    lifting = model.codec, model.depth, model.atlas, config.episodes
    episodes = lift_episodes(store, *lifting, hinted=True)
    heldout = lift_episodes(EpisodeStore(config.data, "heldout"), *lifting, hinted=True)
    check_lengths(config, episodes, heldout)
    networks = TrainedNetworks(model.transformer, model.refiner, model.text_encoder, model.codec)
    # A resumed run has to train against the same fixed networks.
    parts = fingerprint_of((model.codec, model.depth, model.reward_heads, model.atlas))
    identity = {"begin": config.begin, "parts": parts, "recipe": recipe_of(config, store)}
    with Run(config.out, networks, config.learning_rate, *budget, accelerator, **identity) as run:
        # Rollouts use the averaged weights, which are the ones that ship; the run keeps them up to date.
        for name in TRAINED:
            setattr(model, name, getattr(run.average, name))
        world = MosaicWorld(model, device=str(device), denoising_steps=1)
        size = (world.height, world.width)
        k = torch.tensor(model.settings.image_from_camera, device=device).expand(config.batch, 3, 3)
        forward = torch.compile(run.model) if config.compiled else run.model
        metrics: dict[str, float] = {}
        with closing(batches(world, episodes, config, run)) as stream:
            while not run.finished:
                # 1. Recorded steps, and what memory and map give for their views.
                batch = next(stream)
                # 2. Noise: most samples at the level where one-step sampling starts.
                noisy, sigma = add_noise(batch, config, run)
                # 3. Predicted clean frames.
                tokens = model.text_encoder.tokenize(batch.prompts)
                history = batch.history, batch.history_cameras
                with accelerator.autocast():
                    decoded, refined = forward(noisy, sigma, tokens, *history, batch.retrieved, batch.cameras, k, size)
                # 4. Their loss, and an optimizer step.
                true = model.codec.decode(batch.latents)
                loss, decibels = frame_loss(refined.float(), true)
                unrefined, _ = frame_loss(decoded.float(), true)
                run.update(loss + UNREFINED_WEIGHT * unrefined, {"db": decibels, **metrics})
                if run.step_index % (500 * config.reuse) == 0:
                    metrics = heldout_metrics(world, heldout, run)
        for name in TRAINED:  # copies: a longer run resumes from weights that are not rounded
            setattr(model, name, copy.deepcopy(getattr(model, name)))
            round_to_half(getattr(model, name))
        print("world: one step on held-out episodes:", heldout_metrics(world, heldout, run))
    model.save_pretrained(config.out / "weights")
    return model
