"""Selecting patches, and moving, turning, enlarging, duplicating, removing and splicing them; undo and redo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import check_similarity
from mosaic_gym.memory import editing
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.pictures import depth_channel
from tests.memory.test_pictures import SIZE, K, cameras, lifted, shown, wall
from tests.tiny_pictures import tiny_codec

FX = float(K[0, 0])


@pytest.fixture(scope="module")
def codec():
    return tiny_codec()


@pytest.fixture(scope="module")
def memory(codec):
    """A wall three metres ahead, with a box of 16 x 16 pixels one and a half metres ahead in the middle."""
    picture = wall(3.0)
    picture[:, :3, 8:24, 16:32] = 0.9
    picture[:, 3, 8:24, 16:32] = depth_channel(torch.tensor(1.5))
    return MosaicMemory().update(lifted(picture, cameras(), codec))


@pytest.fixture(scope="module")
def box(memory):
    return editing.select_on_screen(memory, (8, 16, 24, 32), cameras()[0, -1], K, SIZE)


def white(memory, codec, x: float = 0.0) -> torch.Tensor:
    """The pixels that show the box."""
    found = shown(memory, cameras(x), codec)
    return (found.picture[0, :3].mean(0) > 0.85) & found.covered[0]


def middle(mask: torch.Tensor) -> np.ndarray:
    return mask.nonzero().double().mean(0).numpy() + 0.5


def test_a_rectangle_selects_what_it_shows_and_not_what_that_hides(memory, box, codec):
    assert len(box) == 4, "patches of 8 x 8 pixels"
    behind = memory.update(lifted(wall(6.0, 1), cameras(), codec, step=1))
    again = editing.select_on_screen(behind, (8, 16, 24, 32), cameras()[0, -1], K, SIZE)
    assert len(again) == 4 and not again.masks[1].any(), "the wall behind the box is hidden by it"
    everywhere = editing.select_on_screen(memory, (0, 0, *SIZE), cameras()[0, -1], K, SIZE)
    assert len(everywhere) == len(editing.select_all(memory))


def test_boxes_in_space_and_steps_select(memory, codec):
    near = editing.select_in_box(memory, (-1, -1, 1.0), (1, 1, 2.0))
    assert len(near) == 4
    turned = np.diag([-1.0, 1.0, -1.0, 1.0])  # half a turn: what is ahead is at negative z
    assert len(editing.select_in_box(memory, (-1, -1, -2.0), (1, 1, -1.0), turned)) == 4
    later = memory.update(lifted(wall(6.0, 1), cameras(), codec, step=7))
    assert [int(mask.sum()) for mask in editing.select_steps(later, 5, 9).masks] == [0, 24]
    both = editing.select_in_box(later, (-1, -1, 1.0), (1, 1, 2.0)) | editing.select_steps(later, 5, 9)
    assert len(both) == 28
    assert len(both - editing.select_steps(later, 5, 9)) == len(both & editing.select_steps(later, 0, 0)) == 4


def test_patches_are_selected_by_the_prompt_under_which_they_were_made(memory, codec, tmp_path):
    cave = memory.update(lifted(wall(6.0, 1), cameras(), codec, step=1), "a dark Cave")
    assert [int(mask.sum()) for mask in editing.select_labelled(cave, "cave").masks] == [0, 24]
    moved = editing.move(cave, editing.select_labelled(cave, "cave"), (1.0, 0.0, 0.0))
    moved.save(tmp_path / "memory.safetensors")
    again = MosaicMemory.load(tmp_path / "memory.safetensors")
    assert len(editing.select_labelled(again, "dark cave")) == 24, "after an edit, and from a file"
    with pytest.raises(ValueError, match="select_all"):
        editing.select_labelled(cave, " ")


@pytest.mark.parametrize("dx", [-0.4, -0.2, 0.2, 0.3, 0.5])
def test_a_moved_box_is_displaced_by_fx_dx_over_z(memory, box, codec, dx):
    start = middle(white(memory, codec))
    moved = middle(white(editing.move(memory, box, (dx, 0.0, 0.0)), codec))
    assert moved[1] - start[1] == pytest.approx(FX * dx / 1.5, rel=0.15)
    assert moved[0] == pytest.approx(start[0], abs=0.5)


def test_a_removed_box_is_gone_and_a_duplicated_one_is_there_twice(memory, box, codec):
    assert not white(editing.remove(memory, box), codec).any()
    twice = white(editing.duplicate(memory, box, (0.75, 0.0, 0.0)), codec)
    one = white(memory, codec)
    assert bool((twice & one).sum() == one.sum())
    assert int(twice.sum()) == pytest.approx(2 * int(one.sum()), rel=0.2)


def test_a_box_of_twice_the_size_covers_four_times_the_pixels(memory, codec, box):
    one = white(memory, codec)
    larger = white(editing.scale(memory, box, 1.4), codec)
    assert int(larger.sum()) == pytest.approx(1.4**2 * int(one.sum()), rel=0.15)
    assert np.allclose(middle(larger), middle(one), atol=1.0)
    centre = editing.centre_m(memory, box)
    assert np.allclose(centre, [0.0, 0.0, 1.5], atol=0.05)
    scaled = editing.scale(memory, box, 1.4)
    assert np.allclose(scaled.keyframes[-1].points_m[scaled.keyframes[-1].alive].mean(0), centre, atol=1e-4)


def test_a_turned_box_is_narrower_and_stands_where_it_was(memory, codec, box):
    turned = editing.rotate(memory, box, np.pi / 4)
    points_m = turned.keyframes[-1].points_m[turned.keyframes[-1].alive]
    assert np.allclose(points_m.mean(0), editing.centre_m(memory, box), atol=1e-4)
    # Its right side comes nearer by the sine of the angle, as the axis points down and x to the right.
    right = points_m[points_m[:, 0] > 0.0]
    assert float(right[:, 2].mean()) < 1.5 - 0.05


def test_a_part_is_copied_into_another_scene(memory, codec, box):
    part = editing.extract(memory, box)
    assert len(part) == 1 and int(part.keyframes[0].alive.sum()) == 4
    empty_room = MosaicMemory().update(lifted(wall(3.0), cameras(), codec))
    joined = empty_room.splice(part, editing.translation((0.5, 0.0, 0.0)))
    assert white(joined, codec).any() and not white(empty_room, codec).any()


@pytest.mark.parametrize("side", editing.SIDES)
def test_two_worlds_stand_side_by_side(memory, side):
    axis, direction = editing.SIDES[side]
    joined = editing.splice_beside(memory, memory, side, gap_m=0.5)
    low, high = editing.bounds_m(memory)
    other_low, other_high = editing.bounds_m(MosaicMemory(joined.keyframes[1:]))
    gap = other_low - high if direction > 0 else low - other_high
    assert gap[axis] == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ValueError, match="the side is one of left, right"):
        editing.splice_beside(memory, memory, "inside")


def test_edits_are_undone_and_redone_also_after_further_steps(memory, box, codec):
    history = editing.EditHistory()
    removed = editing.remove(memory, box)
    history.record(memory, removed)
    later = removed.update(lifted(wall(6.0, 1), cameras(), codec, step=3))
    undone = history.undo(later)
    assert undone.keyframes == (*memory.keyframes, later.keyframes[-1])
    assert history.redo(undone).keyframes == later.keyframes
    history.undo(later)
    history.record(undone, undone)
    with pytest.raises(ValueError, match="no edit to redo"):
        history.redo(undone)
    with pytest.raises(ValueError, match="no edit to undo"):
        editing.EditHistory().undo(memory)


def test_an_edited_memory_is_saved_and_loaded(memory, box, tmp_path):
    edited = editing.scale(memory, box, 1.2)
    edited.save(tmp_path / "room.safetensors")
    loaded = MosaicMemory.load(tmp_path / "room.safetensors")
    for one, other in zip(edited.keyframes, loaded.keyframes, strict=True):
        for name, value in one.tensors.items():
            assert torch.equal(value, other.tensors[name]), name


def test_forgotten_steps_are_gone(memory, codec):
    later = memory.update(lifted(wall(6.0, 1), cameras(), codec, step=7))
    assert [keyframe.step for keyframe in editing.forget(later, 3).keyframes] == [7]


def test_what_cannot_be_edited_is_named(memory, box):
    nothing = box - box
    for change in (lambda: editing.move(memory, nothing, (1, 0, 0)), lambda: editing.remove(memory, nothing),
                   lambda: editing.centre_m(memory, nothing)):  # fmt: skip
        with pytest.raises(ValueError, match="nothing is selected"):
            change()
    with pytest.raises(ValueError, match="of a memory with 1 keyframes, this one has 0"):
        editing.remove(MosaicMemory(), box)
    with pytest.raises(ValueError, match="selections of the same memory"):
        _ = box | editing.Selection(())
    with pytest.raises(ValueError, match="three finite numbers"):
        editing.move(memory, box, (1.0, 2.0))
    with pytest.raises(ValueError, match="a number above 0"):
        editing.scale(memory, box, -1.0)
    with pytest.raises(ValueError, match="with an area"):
        editing.select_on_screen(memory, (3, 3, 3, 9), cameras()[0, -1], K, SIZE)
    with pytest.raises(ValueError, match="low not above high"):
        editing.select_in_box(memory, (0, 0, 1), (1, 1, 0))
    with pytest.raises(ValueError, match="has no bounds"):
        editing.bounds_m(MosaicMemory())
    with pytest.raises(ValueError, match="rotation"):
        memory.edit({0: box.masks[0]}, np.diag([1.0, 2.0, 1.0, 1.0]))


def test_a_similarity_is_split():
    matrix = np.eye(4)
    matrix[:3, :3] = 1.5 * np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    matrix[:3, 3] = 1.0, 2.0, 3.0
    rigid, factor = check_similarity(matrix)
    assert factor == pytest.approx(1.5) and np.allclose(rigid[:3, :3] * factor, matrix[:3, :3], atol=1e-5)
    assert check_similarity(torch.eye(4))[1] == 1.0
    for wrong in (np.eye(3), "turn", np.full((4, 4), np.nan), np.diag([-1.0, 1.0, 1.0, 1.0])):
        with pytest.raises(ValueError, match="a rigid transform is"):
            check_similarity(wrong)
