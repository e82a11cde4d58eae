"""PRoPE's identities, in float64, through the very processor the model uses."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention

from mosaic_gym.geometry.camera import invert_pose
from mosaic_gym.geometry.control import yaw_matrix
from mosaic_gym.model.attention import MosaicAttnProcessor, Positions, lifted_projection, rotary_angles, rotary_table
from tests.tiny import tiny_model

K = torch.tensor([[42.7, 0.0, 31.0], [0.0, 51.2, 33.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
HEADS, HEAD, TOKENS = 2, 32, 7


def attention(insertion: str = "split") -> WanAttention:
    torch.manual_seed(0)
    layer = WanAttention(HEADS * HEAD, HEADS, HEAD)
    layer.set_processor(MosaicAttnProcessor(insertion))
    if insertion == "parallel":
        layer.to_out_cameras = torch.nn.Linear(HEADS * HEAD, HEADS * HEAD)
    return layer.double()


both = pytest.mark.parametrize("insertion", ["split", "parallel"])


def random_poses(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)
    flat = poses.view(-1, 4, 4)
    for matrix in flat:
        matrix[:3, :3] = torch.from_numpy(yaw_matrix(float(torch.rand((), generator=generator)) * 6.0))
        matrix[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    return poses


def positions(
    world_from_camera: torch.Tensor,
    k: torch.Tensor = K,
    coordinates: torch.Tensor | None = None,
    insertion: str = "split",
) -> Positions:
    if coordinates is None:
        coordinates = torch.zeros(1, world_from_camera.shape[1], 3, dtype=torch.float64)
    angles = rotary_angles(coordinates, HEAD // 2 if insertion == "split" else HEAD, 100.0)[:, :, None]
    projection, inverse = lifted_projection(invert_pose(world_from_camera), k, (64, 64), 4.0)
    return Positions(*rotary_table(angles), projection, inverse)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(1, TOKENS, HEADS * HEAD, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@both
def test_autocast_does_not_round_the_cameras(insertion):
    model = tiny_model().transformer
    model.register_to_config(insertion=insertion)
    far = random_poses(2, 1, TOKENS, 4).float()
    far[..., 0, 3] += 25.0
    context = SimpleNamespace(anchor=far[:, 0, 0], image_from_camera=K.float()[None], size=(64, 64))
    given = torch.zeros(1, TOKENS, 3), far, torch.zeros(1, TOKENS, 4), context
    exact = model._positions(*given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model._positions(*given)
    assert torch.equal(rounded.projection, exact.projection) and torch.equal(rounded.inverse, exact.inverse)
    relative = invert_pose(far.double()) @ far[:, :1, :1].double()
    precise, _ = lifted_projection(relative, K, (64, 64), model.config.metres_per_unit)
    found = exact.projection if insertion == "parallel" else exact.projection[..., :4, :4]
    wanted = precise if insertion == "parallel" else precise[:, :, 0]
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)


def test_the_inverse_is_the_inverse():
    projection, inverse = lifted_projection(random_poses(0, 5), K, (48, 64), 4.0)
    assert torch.allclose(projection @ inverse, torch.eye(4, dtype=torch.float64).expand(5, 4, 4), atol=1e-12)


@both
def test_moving_the_world_frame_changes_nothing(insertion, tokens):
    cameras = random_poses(1, 1, TOKENS, 4)
    moved = random_poses(2, 1)[0] @ cameras
    layer = attention(insertion)
    one = layer(tokens, None, None, positions(cameras, insertion=insertion))
    other = layer(tokens, None, None, positions(moved, insertion=insertion))
    assert torch.allclose(one, other, atol=1e-10)


def test_equal_cameras_give_plain_attention(tokens):
    same = random_poses(4, 1, 1, 1).expand(1, TOKENS, 4, 4, 4)
    layer = attention()
    got = layer(tokens, None, None, positions(same))
    query, key, value = (
        x.unflatten(2, (HEADS, HEAD)).transpose(1, 2)
        for x in (layer.norm_q(layer.to_q(tokens)), layer.norm_k(layer.to_k(tokens)), layer.to_v(tokens))
    )
    plain = layer.to_out[0](F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    assert torch.allclose(got, plain, atol=1e-10)


@both
@pytest.mark.parametrize("sub_frame", range(4))
def test_each_of_the_four_cameras_counts(insertion, tokens, sub_frame):
    cameras = random_poses(5, 1, TOKENS, 4)
    changed = cameras.clone()
    changed[0, 2, sub_frame, 0, 3] += 0.5
    layer = attention(insertion)
    here = layer(tokens, None, None, positions(cameras, insertion=insertion))
    difference = here - layer(tokens, None, None, positions(changed, insertion=insertion))
    assert difference.abs().max() > 1e-4


@both
def test_changing_k_changes_the_output(insertion, tokens):
    cameras = random_poses(6, 1, TOKENS, 4)
    wider = K * torch.tensor([0.8, 1.0, 1.0], dtype=torch.float64)[:, None]
    layer = attention(insertion)
    here = layer(tokens, None, None, positions(cameras, insertion=insertion))
    difference = here - layer(tokens, None, None, positions(cameras, wider, insertion=insertion))
    assert difference.abs().max() > 1e-4


@both
def test_rotary_coordinates_are_relative_and_keep_their_fraction(insertion, tokens):
    cameras = random_poses(7, 1, TOKENS, 4)
    coordinates = torch.rand(1, TOKENS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * 8
    layer = attention(insertion)
    here = layer(tokens, None, None, positions(cameras, coordinates=coordinates, insertion=insertion))
    shifted = layer(tokens, None, None, positions(cameras, coordinates=coordinates + 3.25, insertion=insertion))
    rounded = layer(tokens, None, None, positions(cameras, coordinates=coordinates.round(), insertion=insertion))
    assert torch.allclose(here, shifted, atol=1e-10)
    assert (here - rounded).abs().max() > 1e-4


@both
def test_cached_keys_give_what_one_long_pass_gives(insertion, tokens):
    cameras = random_poses(9, 1, TOKENS, 4)
    layer, clean = attention(insertion), 4
    whole = positions(cameras, insertion=insertion)
    together = layer(tokens, None, None, whole)[:, clean:]
    first = positions(cameras[:, :clean], insertion=insertion)
    first.kv_output = []
    layer(tokens[:, :clean], None, None, first)
    second = positions(cameras[:, clean:], insertion=insertion)
    second.kv_cache = first.kv_output[0]
    assert torch.allclose(layer(tokens[:, clean:], None, None, second), together, atol=1e-10)


def test_a_second_attention_that_begins_at_zero_leaves_the_first_alone(tokens):
    cameras = random_poses(10, 1, TOKENS, 4)
    layer = attention("parallel")
    torch.nn.init.zeros_(layer.to_out_cameras.weight)
    torch.nn.init.zeros_(layer.to_out_cameras.bias)
    here = layer(tokens, None, None, positions(cameras, insertion="parallel"))
    elsewhere = layer(tokens, None, None, positions(random_poses(11, 1, TOKENS, 4), insertion="parallel"))
    assert torch.equal(here, elsewhere)
