"""Cameras: half-integer centres, non-square pixels, and grids whose height differs from their width."""

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import (
    cell_centres,
    check_intrinsics,
    check_rigid,
    extent,
    in_view,
    invert_pose,
    project,
    rescale_intrinsics,
    transform,
    transform_and_project,
    unproject,
)
from mosaic_gym.geometry.control import yaw_matrix

K = torch.tensor([[40.0, 0.0, 30.0], [0.0, 50.0, 22.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def pose(x: float, z: float, yaw_rad: float) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(yaw_matrix(yaw_rad))
    matrix[:3, 3] = torch.tensor([x, 0.2, z])
    return matrix


def test_the_first_centre_is_half_a_cell_in():
    centres = cell_centres(3, 5, torch.zeros(1))
    assert centres.shape == (3, 5, 2)
    assert centres[0, 0].tolist() == [0.5, 0.5]
    assert centres[2, 4].tolist() == [4.5, 2.5]


def test_projecting_what_was_unprojected_returns_the_centres():
    depth_m = 1.0 + torch.rand(48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uv, z = project(unproject(depth_m, K).flatten(0, 1), K)
    assert torch.allclose(uv.view(48, 64, 2), cell_centres(48, 64, depth_m), atol=1e-10)
    assert torch.allclose(z.view(48, 64), depth_m)


def test_rescaling_intrinsics_scales_where_points_land():
    points = torch.tensor([[0.3, -0.2, 2.0], [-0.7, 0.4, 3.0]], dtype=torch.float64)
    fine, _ = project(points, K)
    coarse, _ = project(points, rescale_intrinsics(K, (48, 64), (6, 16)))
    assert torch.allclose(coarse, fine * torch.tensor([16 / 64, 6 / 48], dtype=torch.float64))


def test_inverting_a_pose_undoes_it():
    there = pose(1.0, -2.0, 0.7)
    points = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(transform(invert_pose(there), transform(there, points)), points)


def test_intrinsics_are_told_as_plain_rows():
    assert check_intrinsics(K.numpy()) == ((40.0, 0.0, 30.0), (0.0, 50.0, 22.0), (0.0, 0.0, 1.0))
    assert check_intrinsics([[40, 0, 30], [0, 50, 22], [0, 0, 1]]) == ((40, 0, 30), (0, 50, 22), (0, 0, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        "K",
        None,
        [1, 2, 3],
        np.eye(4),
        [["40", 0, 30], [0, 50, 22], [0, 0, 1]],
        [[np.nan, 0, 30], [0, 50, 22], [0, 0, 1]],
        [[40, 1, 30], [0, 50, 22], [0, 0, 1]],
        [[40, 0, 30], [0, -50, 22], [0, 0, 1]],
        [[40, 0, 30], [0, 50, 22], [0, 0, 2]],
    ],
)
def test_intrinsics_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="image_from_camera is K in pixels.*; got"):
        check_intrinsics(wrong)


def test_landing_is_projecting_what_was_carried_with_coordinates_first():
    poses = torch.stack([pose(0.3, -0.2, 0.4), pose(-1.0, 0.5, 2.0)])
    points = torch.randn(2, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    uv, z_m = transform_and_project(points, poses, K)
    expected, depth_m = project(transform(poses, points.mT), K)
    ahead = depth_m > 1e-3
    assert ahead.any() and not ahead.all()
    assert torch.allclose(uv.mT[ahead], expected[ahead]) and torch.allclose(z_m, depth_m)


def test_what_is_in_view_is_on_the_image_and_in_front():
    u = torch.tensor([0.0, 63.9, 64.0, -0.1, 5.0, 5.0, 5.0, 5.0, torch.nan])
    v = torch.tensor([0.0, 47.9, 5.0, 5.0, 48.0, -0.1, 5.0, 5.0, 5.0])
    z_m = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.05, -1.0, 1.0])
    seen = in_view(torch.stack([u, v]), z_m, (48, 64))
    assert seen.tolist() == [True, True] + [False] * 7


def test_constants_are_made_once_and_what_is_compiled_meets_no_cache(monkeypatch):
    like = torch.zeros(1)
    for make in (cell_centres, extent):
        assert make(5, 9, like) is make(5, 9, like)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for make in (cell_centres, extent):
        one, other = make(5, 9, like), make(5, 9, like)
        assert one is not other and torch.equal(one, other)


def test_shared_constants_let_gradients_pass_whoever_asked_for_them_first():
    with torch.inference_mode():
        assert not cell_centres(7, 11, torch.zeros(1)).is_inference()
        assert not extent(7, 11, torch.zeros(1)).is_inference()
    slope = torch.ones(1, requires_grad=True)
    (slope * cell_centres(7, 11, slope)).sum().backward()
    assert slope.grad.item() == 11 * 7 * (5.5 + 3.5)
    assert cell_centres(7, 11, slope.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("home", "no array of numbers"),
        ([[1.0], [2.0, 3.0]], "inhomogeneous"),
        ([["1", "0", "0", "0"]] * 4, "no array of numbers"),
        (np.eye(3), r"shape \(3, 3\)"),
        (torch.full((4, 4), torch.nan), "nan"),
        (2.0 * torch.eye(4), "last row is"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "scaled by 2"),
    ],
)
def test_a_transform_that_is_not_rigid_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(ValueError, match=f"a rigid transform is a finite rotation.*{reason}"):
        check_rigid(wrong)


def test_a_rigid_transform_is_taken_from_any_array():
    there = pose(1.0, 2.0, 0.3)
    flipped = np.ascontiguousarray(there.numpy()[::-1])[::-1]  # negative strides
    for taken in (flipped, there, there.tolist(), there.mT.contiguous().mT, there.clone().requires_grad_()):
        matrix = check_rigid(taken)
        assert matrix.dtype == torch.float32 and torch.equal(matrix, there.float())


def test_the_defaults_of_the_process_change_nothing():
    like = torch.zeros(1)
    expected = cell_centres(6, 13, like).clone(), extent(6, 13, like).clone(), check_rigid(np.eye(4))
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        for cached in (cell_centres, extent):
            cached(6, 17, like)
        found = (
            cell_centres(6, 17, like)[:, :13],
            cell_centres(6, 13, like),
            extent(6, 13, like),
            check_rigid(np.eye(4)),
        )
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for one, other in zip(found, (expected[0], *expected), strict=True):
        assert one.dtype == torch.float32 and one.device.type == "cpu" and torch.equal(one, other)
