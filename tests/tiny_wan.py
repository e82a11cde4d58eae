"""A Wan 2.2 pipeline of the real classes at tiny size, random weights, as `save_pretrained` writes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mosaic_gym.memory.retrieval import Retrieved, retrieve
from mosaic_gym.model.tokens import Context
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.codec import WanCodec
from mosaic_gym.model.wan.options import WanOptions

STRIDE, CHANNELS, TEXT = 16, 6, 32
SIZE = (64, 96)
GRID = (SIZE[0] // STRIDE, SIZE[1] // STRIDE)
K = torch.tensor([[60.0, 0.0, 48.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]])
EXACT = WanOptions(dtype="float64")


def tiny_transformer(seed: int = 0, layers: int = 2) -> WanTransformer3DModel:
    """As TI2V-5B is shaped: 2x2 patches, as many channels out as in."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=TEXT, freq_dim=16, ffn_dim=48, num_layers=layers,
    )  # fmt: skip


def tiny_vae(seed: int = 1) -> AutoencoderKLWan:
    """As Wan 2.2's is shaped: residual, pixels in patches of 2x2, stride 16."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        latents_mean=[0.1 * i for i in range(CHANNELS)], latents_std=[1.0 + 0.1 * i for i in range(CHANNELS)],
        scale_factor_spatial=STRIDE,
    )  # fmt: skip


def tiny_pipeline(transformer: WanTransformer3DModel | None = None, text_width: int = TEXT) -> WanImageToVideoPipeline:
    """All of TI2V's components."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate("a room hall red".split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(2)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(vocabulary), d_model=text_width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return WanImageToVideoPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=text_encoder.eval(),
        vae=tiny_vae().eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        ),
        transformer=(transformer or tiny_transformer()).eval(),
        expand_timesteps=True,
    )


def save_adapter(folder: Path, seed: int, target: str = "to_q") -> Path:
    """Writes a LoRA adapter of the tiny transformer that matters."""
    torch.manual_seed(seed)
    transformer = tiny_transformer()
    transformer.add_adapter(LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    WanImageToVideoPipeline.save_lora_weights(folder, get_peft_model_state_dict(transformer))
    return folder


def save_pipeline(folder: Path) -> Path:
    """Writes it as a user would find it."""
    tiny_pipeline().save_pretrained(folder)
    return folder


def without(monkeypatch, module: str) -> None:
    """Lets an optional package seem not to be installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "mosaic_gym.model.wan.requirements.find_spec", lambda name: None if name == module else find_spec(name)
    )


def in_ours(wan, **kwargs) -> MosaicTransformer3DModel:
    """Ours with the weights of a Wan transformer, by their own names."""
    config = {name: value for name, value in wan.config.items() if not name.startswith("_")}
    ours = MosaicTransformer3DModel(**config, **kwargs).to(wan.dtype)
    missing, unexpected = ours.load_state_dict(wan.state_dict(), strict=False)
    assert not unexpected and all("to_out_cameras" in name for name in missing)
    return ours


def nothing_retrieved(cameras: torch.Tensor) -> Retrieved:
    """What an empty memory gives for cameras `[b, t, 4, 4, 4]`."""
    views = cameras.flatten(0, 1).float()
    return retrieve([()] * len(views), views, K, WanCodec(tiny_vae()), (CHANNELS, *GRID), 0, 0, 2)


def context_for(
    ours: MosaicTransformer3DModel, history: torch.Tensor, frames: int, text: torch.Tensor, once: bool = False
) -> Context:
    cameras = torch.eye(4, dtype=history.dtype).expand(len(history), frames, 4, 4, 4)
    k = K.to(history.dtype).expand(len(history), 3, 3)
    return ours.read(history, cameras[:, :1], nothing_retrieved(cameras), cameras, k, SIZE, text, once)
