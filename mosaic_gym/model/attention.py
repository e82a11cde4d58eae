"""Where a token is: rotary coordinates in the target's grid, and the cameras it was seen by.

- Rotary coordinates are real-valued: a remembered patch is rotated by the fraction of a cell at which it
  lands, never by a rounded index (Warped RoPE, MosaicMem, arXiv 2603.17117).
- Cameras enter by PRoPE (*Cameras as Relative Positional Encoding*, arXiv 2507.10496): attention becomes
  o = D Attn(D^T q, D^-1 k, D^-1 v), and logits see P_i P_j^-1 only. A latent frame has four cameras, so the
  projective half of every head is divided into four groups, one for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
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


def rotary_angles(coordinates: Float[Tensor, "b n 3"], dimensions: int, theta: float) -> Float[Tensor, "b n half"]:
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
        cosine, sine: `[b, n, 1, r]`, for each of the r rotary numbers of a head, float32 or finer; see `turns`.
        projection, inverse: `[b, n, 4, 4, 4]`, PRoPE's P and P^-1 of a token's four cameras; or as `written_out`.
        cached: what attention kept of clean tokens that this pass may look at: `[b, m, heads, d]` each.
        key_mask: bool `[b, 1, 1, keys]`, which keys (cached first, own behind) exist; None where all do.
        stored: where a pass that is to be looked at puts what `cached` takes; None for others. Each block is given an
            empty list: compiled code is made for one length of it.
    """

    cosine: Tensor
    sine: Tensor
    projection: Tensor
    inverse: Tensor
    cached: tuple[Tensor, ...] | None = None
    key_mask: Tensor | None = None
    stored: list[tuple[Tensor, ...]] | None = None

    def of(self, tokens: slice) -> Positions:
        """Those of some of the tokens, with nothing cached and no mask."""
        return Positions(*(each[:, tokens] for each in (self.cosine, self.sine, self.projection, self.inverse)))


def turns(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[..., r]` of a rotation by angles `[..., r / 2]`: a pair (x, y) becomes (x, y) cos + (y, x) sin.

    The sine of a pair's first number is negative.
    """
    cosine, sine = angles.cos(), angles.sin()
    return cosine.repeat_interleave(2, -1), torch.stack([-sine, sine], dim=-1).flatten(-2)


def _rotate(x: Tensor, at: Positions) -> Tensor:
    # Whole vectors at a time: pair by pair it takes twice as long on a CPU.
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * at.cosine, swapped, at.sine).type_as(x)


def written_out(matrices: Tensor, p: int) -> Tensor:
    """Four cameras' matrices `[b, n, 4, 4, 4]` as one for all p projective numbers of a head, `[b, n, p, p]`.

    Mostly zeros, yet for small heads one product with it is five times as fast as sixteen small ones.
    """
    groups = p // 16
    whole = matrices.new_zeros(*matrices.shape[:2], 4, groups, 4, 4, groups, 4)
    # The diagonal of both pairs of block indices, as a view that is written to.
    diagonal = whole.diagonal(dim1=2, dim2=5).diagonal(dim1=2, dim2=4)  # [b, n, 4, 4, cameras, groups]
    diagonal.copy_(matrices.permute(0, 1, 3, 4, 2)[..., None])
    return whole.view(*matrices.shape[:2], p, p)


def _project(x: Tensor, matrices: Tensor) -> Tensor:
    """Each quarter of the last dimension, in groups of four numbers, times its camera's matrix.

    Args:
        x: `[b, n, heads, p]`, p divisible by 16; matrices: `[b, n, 4, 4, 4]`, or as `written_out`.
    """
    if matrices.dim() == 4:
        with torch.autocast(x.device.type, enabled=False):  # it would round the cameras
            return (x.to(matrices.dtype) @ matrices.transpose(-1, -2)).type_as(x)
    groups = x.unflatten(-1, (4, -1, 4)).to(matrices.dtype).unbind(-1)  # four of [b, n, heads, 4, p / 16]
    columns = matrices[:, :, None, :, None].unbind(-1)  # four of [b, n, 1, 4, 1, 4]
    # Sums written out, not a product of matrices four wide: compiled, it is one kernel, with what surrounds it.
    moved = groups[0][..., None] * columns[0]
    for group, column in zip(groups[1:], columns[1:], strict=True):
        moved = torch.addcmul(moved, group[..., None], column)
    return moved.flatten(-3).type_as(x)


class MosaicAttnProcessor:
    """Wan's self-attention with PRoPE and Warped RoPE.

    *split*: PRoPE on the first half of every head and Warped RoPE on the second. *parallel*: Warped RoPE as Wan's own
    rotary embedding, and beside it a second attention over the same queries, keys and values, with PRoPE on all of
    every head; its own output projection, `to_out_cameras`, begins at zero.

    Args:
        insertion: `split` or `parallel`.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, insertion: str):
        self.insertion = insertion
        self._attend = self._split if insertion == "split" else self._parallel

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Positions,
    ) -> Tensor:
        """`[b, n, d]` to `[b, n, d]`; the slot diffusers calls `rotary_emb` carries all the positions."""
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        return self._attend(attn, query, key, value, rotary_emb)

    def keep(self, attn: WanAttention, hidden_states: Tensor, at: Positions) -> None:
        """Stores keys and values of tokens `[b, n, d]` that are looked at and look at nothing themselves."""
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        at.stored.append(self._seen_as(key, value, at))

    def _split(self, attn: WanAttention, query: Tensor, key: Tensor, value: Tensor, at: Positions) -> Tensor:
        half = query.shape[-1] // 2
        moved = _project(query[..., :half], at.projection.transpose(-1, -2))
        query = torch.cat([moved, _rotate(query[..., half:], at)], dim=-1)
        key, value = _remembered(at, *self._seen_as(key, value, at))
        out = self._dot(query, key, value, at)
        return _out(attn, torch.cat([_project(out[..., :half], at.projection), out[..., half:]], dim=-1))

    def _parallel(self, attn: WanAttention, query: Tensor, key: Tensor, value: Tensor, at: Positions) -> Tensor:
        moved_query = _project(query, at.projection.transpose(-1, -2))
        key, value, moved_key, moved_value = _remembered(at, *self._seen_as(key, value, at))
        out = _out(attn, self._dot(_rotate(query, at), key, value, at))
        seen = _project(self._dot(moved_query, moved_key, moved_value, at), at.projection)
        return out + attn.to_out_cameras(seen.flatten(2))

    def _seen_as(self, key: Tensor, value: Tensor, at: Positions) -> tuple[Tensor, ...]:
        """What others look at: keys and values where they are, of each attention."""
        if self.insertion == "split":
            half = key.shape[-1] // 2
            # Both in one product: for tokens this small, calls cost more than arithmetic.
            moved = _project(torch.cat([key[..., :half], value[..., :half]], dim=2), at.inverse)
            moved_key, moved_value = moved.chunk(2, dim=2)
            key = torch.cat([moved_key, _rotate(key[..., half:], at)], dim=-1)
            return key, torch.cat([moved_value, value[..., half:]], dim=-1)
        return _rotate(key, at), value, _project(key, at.inverse), _project(value, at.inverse)

    def _dot(self, query: Tensor, key: Tensor, value: Tensor, at: Positions) -> Tensor:
        return dispatch_attention_fn(query, key, value, attn_mask=at.key_mask, backend=self._attention_backend)


class TextAttnProcessor(WanAttnProcessor):
    """Wan's attention to the prompt, whose keys and values may be given instead of its vectors.

    They are the same for all denoising steps; for a small frame, making them is a quarter of a step's arithmetic.
    """

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """`[b, n, d]` to `[b, n, d]`; the prompt as vectors `[b, l, d]`, or as what `told` returned."""
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        return _out(attn, dispatch_attention_fn(query, *encoder_hidden_states, backend=self._attention_backend))

    def told(self, attn: WanAttention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[b, l, heads, d]` of a prompt's vectors `[b, l, d]`."""
        key = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))
        return key, attn.to_v(text).unflatten(2, (attn.heads, -1))


def _remembered(at: Positions, *own: Tensor) -> tuple[Tensor, ...]:
    """The keys and values of this pass behind those of the clean tokens; kept, if this pass is to be looked at."""
    if at.stored is not None:
        at.stored.append(own)
    if at.cached is None:
        return own
    return tuple(torch.cat([before, mine], dim=1) for before, mine in zip(at.cached, own, strict=True))


def _out(attn: WanAttention, heads: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](heads.flatten(2)))
