"""Warped Latent against an obvious implementation and planes whose answer is known."""

import torch

from mosaic_gym.geometry.camera import cell_centres, invert_pose, project, transform, unproject
from mosaic_gym.memory.warp import fill_holes, warp_frames
from mosaic_gym.memory.zbuffer import LAST_RESORT_COST, PARALLAX_COST, splat_depth

HEIGHT, WIDTH = 48, 64
K = torch.tensor([[50.0, 0.0, 31.0], [0.0, 60.0, 23.0], [0.0, 0.0, 1.0]])


def plane(world_from_camera: torch.Tensor, normal: torch.Tensor, offset: float) -> torch.Tensor:
    """Depth `[H, W]` at which every cell's ray meets the plane normal . x = offset of the world."""
    rays = unproject(torch.ones(HEIGHT, WIDTH), K) @ world_from_camera[:3, :3].T
    return (offset - world_from_camera[:3, 3] @ normal) / (rays @ normal)


def painted(world_from_camera: torch.Tensor, depth_m: torch.Tensor) -> torch.Tensor:
    """A smooth picture `[2, H, W]` painted onto the world, as seen from the camera."""
    points = transform(world_from_camera, unproject(depth_m, K).flatten(0, 1)).view(HEIGHT, WIDTH, 3)
    return torch.stack([torch.sin(2.0 * points[..., 0]), torch.cos(1.5 * points[..., 1] + points[..., 0])])


def moved(x: float, y: float, z: float) -> torch.Tensor:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose


def warp_once(source: torch.Tensor, target: torch.Tensor, depth_m: torch.Tensor, image: torch.Tensor):
    alive = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    zero = torch.zeros(1, 1, HEIGHT, WIDTH)
    return warp_frames(
        image[None, None], depth_m[None, None], zero, alive, source[None, None], target[None, None], K[None]
    )


def cubic(offset: float, a: float = -0.75) -> float:
    """Weight of a cell at a distance, in cubic convolution (Keys 1981, with PyTorch's a)."""
    x = abs(offset)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_a_slanted_plane_looks_from_the_target_as_it_should():
    normal = torch.nn.functional.normalize(torch.tensor([0.3, 0.2, 1.0]), dim=0)
    source, target = torch.eye(4), moved(0.4, -0.1, 0.3)
    depth_m = plane(source, normal, 3.0)
    warped = warp_once(source, target, depth_m, painted(source, depth_m))
    true_m = plane(target, normal, 3.0)
    inner = warped.covered[0, 0]
    assert inner.float().mean() > 0.85
    assert (warped.depth_m[0, 0] - true_m)[inner].abs().max() < 0.01
    inner = inner.clone()
    inner[:, -6:] = inner[:2] = False  # there the source's outermost half cell is shown, where sampling clamps
    assert (warped.warped_frames[0, 0] - painted(target, true_m))[:, inner].abs().max() < 0.02


def test_values_agree_with_a_loop_over_cells():
    depth_m = torch.full((HEIGHT, WIDTH), 2.5)
    source, target = torch.eye(4), moved(0.13, 0.07, 0.2)
    image = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    warped = warp_once(source, target, depth_m, image)
    for row, column in ((5, 9), (20, 33), (40, 50), (31, 12)):
        point = unproject(torch.full((HEIGHT, WIDTH), 2.5 - 0.2), K)[row, column] + target[:3, 3]
        u, v = (K @ point)[:2] / point[2] - 0.5
        left, top = int(u.floor()), int(v.floor())
        value = sum(
            cubic(float(v) - y) * cubic(float(u) - x) * image[0, y, x]
            for y in range(top - 1, top + 3)
            for x in range(left - 1, left + 3)
        )
        assert abs(float(warped.warped_frames[0, 0, 0, row, column] - value)) < 2e-3


def test_a_near_wall_hides_what_is_behind_it_whatever_the_order():
    far, near = torch.full((HEIGHT, WIDTH), 6.0), torch.full((HEIGHT, WIDTH), 2.0)
    half = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    half[:, : WIDTH // 2] = True
    warped_frames = torch.stack([torch.zeros(1, HEIGHT, WIDTH), torch.ones(1, HEIGHT, WIDTH)])
    alive = torch.stack([torch.ones_like(half), half])
    depths, poses = torch.stack([far, near]), torch.eye(4).expand(2, 4, 4)
    results = []
    for order in ([0, 1], [1, 0]):
        warped = warp_frames(
            warped_frames[order][None], depths[order][None], torch.zeros(1, 2, HEIGHT, WIDTH), alive[order][None],
            poses[None], moved(0.0, 0.0, 0.05)[None, None], K[None],
        )  # fmt: skip
        results.append(warped.warped_frames[0, 0, 0])
    assert results[0][:, 2:28].min() > 0.999
    assert results[0][:, 36:].max() < 0.001
    assert torch.equal(results[0], results[1])


def test_what_was_seen_from_afar_shows_only_where_nothing_nearer_does_and_hides_nothing():
    near, far = moved(0.1, 0.0, 0.0), moved(0.0, 0.0, -6.0)
    behind = torch.full((HEIGHT, WIDTH), 4.0)
    wrong = torch.full((HEIGHT, WIDTH), 7.5)  # by its estimate, 1.5 m in front of here
    alive = torch.ones(1, 2, HEIGHT, WIDTH, dtype=torch.bool)
    alive[:, 0, :, : WIDTH // 2] = False  # the nearer source has seen the right half only
    warped_frames = torch.stack([torch.zeros(1, HEIGHT, WIDTH), torch.ones(1, HEIGHT, WIDTH)])
    zero, depths_m, sources = torch.zeros(1, 2, HEIGHT, WIDTH), torch.stack([behind, wrong]), torch.stack([near, far])
    for order in ([0, 1], [1, 0]):
        warped = warp_frames(
            warped_frames[order][None], depths_m[order][None], zero, alive[:, order], sources[order][None],
            torch.eye(4)[None, None], K[None],
        )  # fmt: skip
        middle = slice(12, 36)
        right, left = (warped.warped_frames[0, 0, 0, middle, part] for part in (slice(36, 60), slice(4, 28)))
        assert (right == 0).all() and (warped.depth_m[0, 0, middle, 36:60] - 4.0).abs().max() < 1e-3
        assert warped.covered[0, 0, middle, 4:28].all() and (left - 1.0).abs().max() < 1e-5
        assert (warped.cost[0, 0, middle, 4:28] > LAST_RESORT_COST).all()


def test_how_far_a_value_has_come_is_told():
    depth_m = torch.full((HEIGHT, WIDTH), 2.0)
    image = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    rest = warp_once(torch.eye(4), torch.eye(4), depth_m, image)
    assert rest.covered.all() and rest.displacement_px.abs().max() < 1e-3
    assert (rest.warped_frames[0, 0] - image).abs().max() < 1e-4
    aside = warp_once(torch.eye(4), moved(0.08, 0.0, 0.0), depth_m, image)  # 50 px focal length x 0.08 m / 2 m
    assert (aside.displacement_px[aside.covered] - 2.0).abs().max() < 1e-2


def test_what_a_value_costs_is_told():
    depth_m, image = torch.full((HEIGHT, WIDTH), 2.0), torch.zeros(1, HEIGHT, WIDTH)
    rest = warp_once(torch.eye(4), torch.eye(4), depth_m, image)
    assert rest.cost.abs().max() < 1e-4
    aside = warp_once(torch.eye(4), moved(0.08, 0.0, 0.0), depth_m, image)
    assert (aside.cost[aside.covered] - PARALLAX_COST * 0.08 / 2.0).abs().max() < 1e-2
    assert not aside.covered.all() and aside.cost[~aside.covered].isinf().all()


def test_nothing_is_covered_behind_the_camera_or_out_of_view():
    turned = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    depth_m = torch.full((HEIGHT, WIDTH), 3.0)
    warped = warp_once(torch.eye(4), turned, depth_m, torch.ones(1, HEIGHT, WIDTH))
    assert not warped.covered.any()
    assert warped.warped_frames.abs().max() == 0


def test_splatting_lands_where_projection_says():
    depth_m = torch.full((1, 1, HEIGHT, WIDTH), 4.0)
    alive = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    alive[0, 0, 10, 20] = True
    target = moved(-0.5, 0.25, 1.0)
    buffer = splat_depth(depth_m, alive, invert_pose(target)[None, None, None], K[None])[0, 0, 0]
    uv, z = project(unproject(depth_m[0, 0], K)[10, 20][None] - target[:3, 3], K)
    column, row = uv[0].floor().long().tolist()
    assert buffer.isfinite().sum() == 1
    assert torch.isclose(buffer[row, column], z[0])


def test_holes_are_filled_and_covered_cells_stay():
    values = cell_centres(HEIGHT, WIDTH, torch.zeros(1)).permute(2, 0, 1) / 10.0
    covered = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.5
    filled = fill_holes(values * covered, covered)
    assert torch.equal(filled[:, covered], values[:, covered])
    assert (filled - values).abs().mean() < 0.1
