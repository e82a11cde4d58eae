"""Self-attention over tokens that have a position in the target's grid and four cameras.

- Warped RoPE (MosaicMem, arXiv 2603.17117): a retrieved patch is rotated by the real-valued coordinates at which it
  lands in the target frame. They are never rounded to the token grid.
- PRoPE (*Cameras as Relative Positional Encoding*, arXiv 2507.10496): with P the projection of a token's camera,
  attention becomes o = D Attn(D^T q, D^-1 k, D^-1 v), where D repeats P along the head. Logits then depend on
  P_i P_j^-1 only. A latent frame has four cameras, so the projective dimensions of every head form four groups, one
  for each camera.

Legend: `b` batch, `n` tokens, `m` cached tokens, `d` width, `r` rotary and `p` projective dimensions of a head.
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
    """PRoPE's P = lift(K) T and its inverse, each `[..., 4, 4]` (arXiv 2507.10496).

    K is normalized: focal lengths are divided by the image size, and the principal point is relative to the centre.
    lift(K) is a 4x4 identity with K in its upper left.

    Args:
        camera_from_world: T, `[..., 4, 4]`, metres.
        image_from_camera: `[..., 3, 3]`, K in pixels of an image of `size` (height, width).
        metres_per_unit: the length that counts as one in translations, so that numbers stay near one.
    """
    height, width = size
    extent = image_from_camera.new_tensor([width, height])
    focal = torch.stack([image_from_camera[..., 0, 0], image_from_camera[..., 1, 1]], -1) / extent
    center = image_from_camera[..., :2, 2] / extent - 0.5
    lift = torch.zeros_like(camera_from_world)
    lift[..., 0, 0], lift[..., 1, 1] = focal[..., 0], focal[..., 1]
    lift[..., :2, 2] = center
    lift[..., 2, 2] = lift[..., 3, 3] = 1.0
    unlift = torch.zeros_like(lift)
    unlift[..., 0, 0], unlift[..., 1, 1] = 1 / focal[..., 0], 1 / focal[..., 1]
    unlift[..., :2, 2] = -center / focal
    unlift[..., 2, 2] = unlift[..., 3, 3] = 1.0
    scaled = camera_from_world.clone()
    scaled[..., :3, 3] = scaled[..., :3, 3] / metres_per_unit
    return lift @ scaled, invert_pose(scaled) @ unlift


def rotary_angles(coordinates: Float[Tensor, "b n 3"], dimensions: int, theta: float) -> Float[Tensor, "b n half"]:
    """Rotary angles `[b, n, dimensions / 2]` at real-valued coordinates (t, v, u) `[b, n, 3]`.

    The dimensions are divided among the three axes as in diffusers' `WanRotaryPosEmbed`.
    """
    spatial = 2 * (dimensions // 6)
    angles = []
    for axis, size in enumerate((dimensions - 2 * spatial, spatial, spatial)):
        exponents = torch.arange(0, size, 2, dtype=coordinates.dtype, device=coordinates.device) / size
        angles.append(coordinates[..., axis : axis + 1] * theta**-exponents)
    return torch.cat(angles, dim=-1)


def rotary_table(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[..., r]` of rotations by angles `[..., r / 2]`.

    A pair (x, y) is rotated to (x, y) * cosine + (y, x) * sine; the sine of a pair's first number is negative.
    """
    cosine, sine = angles.cos(), angles.sin()
    return cosine.repeat_interleave(2, -1), torch.stack([-sine, sine], dim=-1).flatten(-2)


def block_diagonal(matrices: Tensor, p: int) -> Tensor:
    """The matrices of four cameras `[b, n, 4, 4, 4]` as one block-diagonal matrix for a head, `[b, n, p, p]`.

    Most of it is zero, yet for small heads one product with it is five times as fast as sixteen small ones.

    Args:
        p: projective dimensions of a head, a multiple of 16.
    """
    groups = p // 16
    whole = matrices.new_zeros(*matrices.shape[:2], 4, groups, 4, 4, groups, 4)
    # A view of the diagonal over both pairs of block indices; writing to it fills `whole`.
    diagonal = whole.diagonal(dim1=2, dim2=5).diagonal(dim1=2, dim2=4)  # [b, n, 4, 4, cameras, groups]
    diagonal.copy_(matrices.permute(0, 1, 3, 4, 2)[..., None])
    return whole.view(*matrices.shape[:2], p, p)


@dataclass
class Positions:
    """Positions of the tokens of one pass, and its KV cache: the argument of the self-attention processor.

    Attributes:
        cosine, sine: `[b, n, 1, r]`, the rotary table, float32 or float64; see `rotary_table`.
        projection, inverse: PRoPE's P and P^-1 of a token's four cameras, `[b, n, 4, 4, 4]`, or as `block_diagonal`
            returns them, `[b, n, p, p]`.
        kv_cache: keys and values of clean tokens that this pass attends to as well, `[b, m, heads, d / heads]` each.
        key_mask: bool `[b, 1, 1, m + n]`, true for keys that exist, cached ones first; None if all do.
        kv_output: a list that receives the keys and values of this pass, for use as `kv_cache` later; None if they are
            not needed. Each block gets an empty list of its own, because compiled code is specialized on its length.
    """

    cosine: Tensor
    sine: Tensor
    projection: Tensor
    inverse: Tensor
    kv_cache: tuple[Tensor, ...] | None = None
    key_mask: Tensor | None = None
    kv_output: list[tuple[Tensor, ...]] | None = None

    def select(self, tokens: slice) -> Positions:
        """Positions of some of the tokens, without cache and mask."""
        return Positions(*(part[:, tokens] for part in (self.cosine, self.sine, self.projection, self.inverse)))


def token_positions(
    coordinates: Tensor,
    cameras: Tensor,
    anchor: Tensor,
    image_from_camera: Tensor,
    size: tuple[int, int],
    metres_per_unit: float,
    theta: float,
    head_dim: int,
    insertion: str,
    dtype: torch.dtype,
) -> Positions:
    """Rotary tables and PRoPE projections of tokens.

    Args:
        coordinates: `[b, n, 3]`, (t, v, u) in token indices, real-valued.
        cameras: `[b, n, 4, 4, 4]`, world_from_camera of the four sub-frames, metres.
        anchor: `[b, 4, 4]`, world_from_camera that all cameras are expressed relative to, for precision.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        head_dim: dimensions of a head.
        insertion: `split` or `parallel`, see `MosaicAttnProcessor`.
        dtype: of the tokens; the result has this dtype, but float32 at least.
    """
    rotary = head_dim // 2 if insertion == "split" else head_dim
    angles = rotary_angles(coordinates.double(), rotary, theta)[:, :, None]
    # Computed in float64, which neither autocast nor TF32 rounds: far from the origin, rounding would shift cameras by
    # decimetres.
    camera_from_anchor = invert_pose(cameras.double()) @ anchor.double()[:, None, None]
    k = image_from_camera.double()[:, None, None]
    projection, inverse = lifted_projection(camera_from_anchor, k, size, metres_per_unit)
    precise = torch.promote_types(dtype, torch.float32)
    # Rounded to float32 first, as Wan's own tables are: then equal positions give equal numbers.
    cosine, sine = (table.float().to(precise) for table in rotary_table(angles))
    projection, inverse = projection.to(precise), inverse.to(precise)
    if insertion == "split":
        projection, inverse = block_diagonal(projection, head_dim // 2), block_diagonal(inverse, head_dim // 2)
    return Positions(cosine, sine, projection, inverse)


def _apply_rotary(x: Tensor, positions: Positions) -> Tensor:
    # On whole vectors: pair by pair it takes twice as long on a CPU.
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * positions.cosine, swapped, positions.sine).type_as(x)


def _apply_projection(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiplies each quarter of the last dimension, in groups of four numbers, by the matrix of its camera.

    Args:
        x: `[b, n, heads, p]`, p divisible by 16.
        matrices: `[b, n, 4, 4, 4]`, or as `block_diagonal` returns them.
    """
    if matrices.dim() == 4:
        with torch.autocast(x.device.type, enabled=False):  # autocast would round the cameras
            return (x.to(matrices.dtype) @ matrices.transpose(-1, -2)).type_as(x)
    groups = x.unflatten(-1, (4, -1, 4)).to(matrices.dtype).unbind(-1)  # four of [b, n, heads, 4, p / 16]
    columns = matrices[:, :, None, :, None].unbind(-1)  # four of [b, n, 1, 4, 1, 4]
    # Written as sums rather than as products of 4x4 matrices: compiled, they fuse into one kernel with their context.
    product = groups[0][..., None] * columns[0]
    for group, column in zip(groups[1:], columns[1:], strict=True):
        product = torch.addcmul(product, group[..., None], column)
    return product.flatten(-3).type_as(x)


class MosaicAttnProcessor:
    """Wan's self-attention with PRoPE and Warped RoPE.

    *split*: PRoPE on the first half of every head, Warped RoPE on the second. *parallel*: Warped RoPE in the place of
    Wan's rotary embedding, plus a second attention over the same queries, keys and values with PRoPE on the whole
    head. The output projection of the second attention, `to_out_cameras`, is initialized to zero.

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
        """`[b, n, d]` to `[b, n, d]`; `rotary_emb`, as diffusers names the argument, carries all positions."""
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        return self._attend(attn, query, key, value, rotary_emb)

    def cache_keys_values(self, attn: WanAttention, hidden_states: Tensor, positions: Positions) -> None:
        """Appends keys and values of tokens `[b, n, d]` to `positions.kv_output`, without attending to anything."""
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        positions.kv_output.append(self._place_keys_values(key, value, positions))

    def _split(self, attn: WanAttention, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        half = query.shape[-1] // 2
        projected = _apply_projection(query[..., :half], positions.projection.transpose(-1, -2))
        query = torch.cat([projected, _apply_rotary(query[..., half:], positions)], dim=-1)
        key, value = _with_cache(positions, *self._place_keys_values(key, value, positions))
        out = self._dot(query, key, value, positions)
        out = torch.cat([_apply_projection(out[..., :half], positions.projection), out[..., half:]], dim=-1)
        return _output_projection(attn, out)

    def _parallel(self, attn: WanAttention, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        projected_query = _apply_projection(query, positions.projection.transpose(-1, -2))
        placed = self._place_keys_values(key, value, positions)
        key, value, projected_key, projected_value = _with_cache(positions, *placed)
        out = _output_projection(attn, self._dot(_apply_rotary(query, positions), key, value, positions))
        by_camera = self._dot(projected_query, projected_key, projected_value, positions)
        by_camera = _apply_projection(by_camera, positions.projection)
        return out + attn.to_out_cameras(by_camera.flatten(2))

    def _place_keys_values(self, key: Tensor, value: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """Keys and values with their positions applied: of one attention (*split*), or of both (*parallel*)."""
        if self.insertion == "split":
            half = key.shape[-1] // 2
            # Both in one product: for tokens this small, calls cost more than arithmetic.
            projected = _apply_projection(torch.cat([key[..., :half], value[..., :half]], dim=2), positions.inverse)
            projected_key, projected_value = projected.chunk(2, dim=2)
            key = torch.cat([projected_key, _apply_rotary(key[..., half:], positions)], dim=-1)
            return key, torch.cat([projected_value, value[..., half:]], dim=-1)
        return (
            _apply_rotary(key, positions),
            value,
            _apply_projection(key, positions.inverse),
            _apply_projection(value, positions.inverse),
        )

    def _dot(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        return dispatch_attention_fn(query, key, value, attn_mask=positions.key_mask, backend=self._attention_backend)


class TextAttnProcessor(WanAttnProcessor):
    """Wan's cross attention to the prompt, which also takes the prompt's keys and values instead of its vectors.

    They are the same for all denoising steps; for a small frame, computing them is a quarter of a step's arithmetic.
    """

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """`[b, n, d]` to `[b, n, d]`; the prompt is vectors `[b, l, d]`, or what `keys_values` returns for them."""
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        out = dispatch_attention_fn(query, *encoder_hidden_states, backend=self._attention_backend)
        return _output_projection(attn, out)

    def keys_values(self, attn: WanAttention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[b, l, heads, d / heads]` of a prompt's vectors `[b, l, d]`."""
        key = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))
        return key, attn.to_v(text).unflatten(2, (attn.heads, -1))


def _with_cache(positions: Positions, *own: Tensor) -> tuple[Tensor, ...]:
    """Keys and values of this pass, appended to the cached ones; also output to `kv_output` if that is requested."""
    if positions.kv_output is not None:
        positions.kv_output.append(own)
    if positions.kv_cache is None:
        return own
    return tuple(torch.cat([cached, new], dim=1) for cached, new in zip(positions.kv_cache, own, strict=True))


def _output_projection(attn: WanAttention, heads: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](heads.flatten(2)))
