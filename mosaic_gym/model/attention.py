"""Where a token is: rotary coordinates in the target's grid, and the cameras it was seen by.

- Rotary coordinates are real-valued: a remembered patch is rotated by the fraction of a cell at which it
  lands, never by a rounded index (Warped RoPE, MosaicMem, arXiv 2603.17117).
- Cameras enter by PRoPE (*Cameras as Relative Positional Encoding*, arXiv 2507.10496): attention becomes
  o = D Attn(D^T q, D^-1 k, D^-1 v), and logits see P_i P_j^-1 only. A latent frame has four cameras, so the
  projective half of every head is divided into four groups, one for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import invert_pose


def lifted_projection(
    camera_from_world: Float[Tensor, "... 4 4"],
    image_from_camera: Float[Tensor, "... 3 3"],
    size: tuple[int, int],
    metres_per_unit: float,
) -> tuple[Float[Tensor, "... 4 4"], Float[Tensor, "... 4 4"]]:
    """PRoPE's P = lift(K) T and its inverse, each `[..., 4, 4]`.

    K is normalised: focal lengths over the image size, principal point relative to the centre.
    Translations are measured in `metres_per_unit`, which keeps the numbers near one.

    Args:
        camera_from_world: `[..., 4, 4]`, metres.
        image_from_camera: `[..., 3, 3]`, K in pixels of an image of `size` (height, width).
    """
    height, width = size
    extent = image_from_camera.new_tensor([width, height])
    focal = torch.stack([image_from_camera[..., 0, 0], image_from_camera[..., 1, 1]], -1) / extent
    centre = image_from_camera[..., :2, 2] / extent - 0.5
    lift = torch.zeros_like(camera_from_world)
    lift[..., 0, 0], lift[..., 1, 1] = focal[..., 0], focal[..., 1]
    lift[..., :2, 2] = centre
    lift[..., 2, 2] = lift[..., 3, 3] = 1.0
    unlift = torch.zeros_like(lift)
    unlift[..., 0, 0], unlift[..., 1, 1] = 1 / focal[..., 0], 1 / focal[..., 1]
    unlift[..., :2, 2] = -centre / focal
    unlift[..., 2, 2] = unlift[..., 3, 3] = 1.0
    scaled = camera_from_world.clone()
    scaled[..., :3, 3] = scaled[..., :3, 3] / metres_per_unit
    return lift @ scaled, invert_pose(scaled) @ unlift


def rotary_angles(
    coordinates: Float[Tensor, "b n 3"], dimensions: int, theta: float
) -> Float[Tensor, "b n half"]:
    """Angles `[b, n, dimensions / 2]` at real-valued (t, v, u) coordinates `[b, n, 3]`, split as Wan splits them."""
    spatial = 2 * (dimensions // 6)
    angles = []
    for axis, size in enumerate((dimensions - 2 * spatial, spatial, spatial)):
        exponents = torch.arange(0, size, 2, dtype=coordinates.dtype, device=coordinates.device) / size
        angles.append(coordinates[..., axis : axis + 1] * theta**-exponents)
    return torch.cat(angles, dim=-1)


@dataclass
class Positions:
    """What the self-attention processor is told of the tokens of one pass.

    Attributes:
        cosine, sine: `[b, n, 1, r / 2]`, for the rotary half of a head (r numbers).
        projection, inverse: `[b, n, 4, 4, 4]`, PRoPE's P and P^-1 of a token's four cameras.
        cached: keys and values `[b, m, heads, d]` of clean tokens that this pass may look at.
        key_mask: bool `[b, 1, 1, keys]`, which keys (cached first, own behind) exist; None where all do.
        stored: the keys and values that this pass computed, one pair a block.
    """

    cosine: Tensor
    sine: Tensor
    projection: Tensor
    inverse: Tensor
    cached: tuple[Tensor, Tensor] | None = None
    key_mask: Tensor | None = None
    stored: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1).flatten(-2)


def _project(x: Tensor, matrices: Tensor) -> Tensor:
    """Each quarter of the last dimension, in groups of four numbers, times its camera's matrix.

    Args:
        x: `[b, n, heads, p]`, p divisible by 16; matrices: `[b, n, 4, 4, 4]`.
    """
    b, n, heads, p = x.shape
    groups = x.view(b, n, heads, 4, p // 16, 4).transpose(2, 3).reshape(b, n, 4, heads * p // 16, 4)
    moved = groups @ matrices.transpose(-1, -2)
    return moved.view(b, n, 4, heads, p // 16, 4).transpose(2, 3).reshape(b, n, heads, p)


class MosaicAttnProcessor:
    """Wan's self-attention with PRoPE on the first half of every head and Warped RoPE on the second.

    (The *split* insertion: for a model trained with it from scratch.)
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Positions,
    ) -> Tensor:
        """`[b, n, d]` to `[b, n, d]`; the slot diffusers calls `rotary_emb` carries all the positions."""
        at = rotary_emb
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        half = query.shape[-1] // 2

        def place(x: Tensor, matrices: Tensor, rotary: bool) -> Tensor:
            second = _rotate(x[..., half:], at.cosine, at.sine) if rotary else x[..., half:]
            return torch.cat([_project(x[..., :half], matrices), second], dim=-1)

        query = place(query, at.projection.transpose(-1, -2), rotary=True)
        key = place(key, at.inverse, rotary=True)
        value = place(value, at.inverse, rotary=False)
        at.stored.append((key, value))
        if at.cached is not None:
            key = torch.cat([at.cached[0], key], dim=1)
            value = torch.cat([at.cached[1], value], dim=1)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=at.key_mask
        ).transpose(1, 2)
        out = place(out, at.projection, rotary=False).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))
