"""Lift and recall round trips, Warped RoPE to a hundredth of a cell, edits, capacity, save and load."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.geometry.control import yaw_matrix
from mosaic_gym.memory import batching, retrieval
from mosaic_gym.memory.files import load_with_metadata, save_with_metadata
from mosaic_gym.memory.keyframe import lift, median_per_cell
from mosaic_gym.memory.mosaic import FORMAT, MosaicMemory
from mosaic_gym.memory.retrieval import retrieve
from mosaic_gym.memory.selection import select
from mosaic_gym.model.codec import LinearCodec
from tests.tiny import lifted

SIZE, GRID, CHANNELS = (32, 64), (4, 8), 12
K = torch.tensor([[50.0, 0.0, 32.0], [0.0, 40.0, 16.0], [0.0, 0.0, 1.0]])
LATENT_K = rescale_intrinsics(K, SIZE, GRID)


def pose(x: float = 0.0, z: float = 0.0, yaw_rad: float = 0.0) -> torch.Tensor:
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.from_numpy(yaw_matrix(yaw_rad)).float()
    matrix[0, 3], matrix[2, 3] = x, z
    return matrix


def wall(
    distance_m: float, at: torch.Tensor, seed: int = 0, step: int = 0, generation: float = 0.0, rough: float = 0.0
):
    """A keyframe of a wall straight ahead, whose depth differs by up to the share `rough` of it."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(CHANNELS, *GRID, generator=generator)
    depth_m = distance_m * (1.0 + rough * torch.rand(SIZE, generator=generator))
    return lifted(latent, depth_m, at.expand(4, 4, 4).clone(), K, torch.full(GRID, generation), step)


def selected(keyframes, at: torch.Tensor, max_sources: int = 4):
    """What the only member of a batch recalls from one camera: sources, patches, and where they land."""
    told = select([keyframes], at.expand(1, 1, 4, 4), LATENT_K, GRID, max_sources, 99)
    exists, sources = told.patch_exists[0], told.sources[0]
    assert len(told.patches[0]) == 99 and len(sources) == max_sources
    return sources[sources >= 0].tolist(), told.patches[0, exists], told.patch_uv[0, exists]


def test_recalling_from_where_it_was_seen_returns_every_patch_to_its_cell():
    sources, patches, uv = selected([wall(3.0, pose())], pose())
    cells = patches[:, 1]
    assert sources == [0]
    assert sorted(cells.tolist()) == list(range(GRID[0] * GRID[1]))
    expected = torch.stack([cells % GRID[1] + 0.5, cells // GRID[1] + 0.5], -1)
    assert (uv - expected).abs().max() < 1e-4


@pytest.mark.parametrize("x,z", [(0.31, 0.0), (-0.2, 0.5), (0.0, 0.7)])
def test_a_plane_seen_again_lands_where_it_should_to_a_hundredth_of_a_cell(x, z):
    _, patches, uv = selected([wall(3.0, pose())], pose(x, z))
    cells = patches[:, 1]
    first = torch.stack([cells % GRID[1] + 0.5, cells // GRID[1] + 0.5], -1)
    centre = torch.tensor([LATENT_K[0, 2], LATENT_K[1, 2]])
    point = (first - centre) / torch.tensor([LATENT_K[0, 0], LATENT_K[1, 1]]) * 3.0 - torch.tensor([x, 0.0])
    landed = point * torch.tensor([LATENT_K[0, 0], LATENT_K[1, 1]]) / (3.0 - z) + centre
    assert len(cells) > 8
    assert (uv - landed).abs().max() < 0.01


def test_the_nearer_wall_wins_and_the_true_one_is_preferred():
    _, patches, _ = selected([wall(6.0, pose(), 1), wall(2.0, pose(), 2)], pose())
    assert set(patches[:, 0].tolist()) == {1}
    sources, _, _ = selected([wall(3.0, pose(), 1, generation=2.0), wall(3.0, pose(), 2)], pose(), 1)
    assert sources == [1]


@pytest.mark.parametrize(("ahead_m", "generation"), [(3.0, 0.0), (5.0, 0.0), (5.5, 0.0), (0.0, 60.0), (5.0, 400.0)])
def test_whatever_sees_a_cell_is_better_than_nothing(ahead_m, generation):
    sources, patches, _ = selected([wall(8.0, pose(), generation=generation)], pose(z=ahead_m))
    assert sources == [0] and len(patches)


def test_a_view_that_is_known_by_heart_does_without_what_was_seen_from_afar():
    codec, seen = LinearCodec(CHANNELS, 8), wall(8.0, pose())
    views = pose(z=5.0).expand(3, 4, 4, 4)
    pictures, supposed = [torch.zeros(4, 3, *SIZE), None, torch.zeros(4, 3, *SIZE)], [False, False, True]
    told = retrieve([[seen]] * 3, views, K, codec, (CHANNELS, *GRID), pictures=pictures, assumed=supposed)
    assert told.coverage[0] == 0.0 and (told.coverage[1:] > 0.5).all()


def test_of_two_that_were_taken_far_away_the_nearer_serves_first():
    sources, _, _ = selected([wall(8.0, pose()), wall(7.0, pose(z=1.0))], pose(z=6.0), max_sources=1)
    assert sources == [1]


def test_moving_a_patch_shifts_where_it_lands_by_focal_length_over_depth():
    keyframe = wall(4.0, pose())
    chosen = torch.zeros(GRID, dtype=torch.bool)
    chosen[2, 3] = True
    shift = pose(x=0.25)
    memory = MosaicMemory((keyframe,)).edit({0: chosen}, shift)
    _, before, from_uv = selected([keyframe], pose())
    _, after, to_uv = selected(memory.keyframes[1:], pose())
    cell = 2 * GRID[1] + 3
    start = from_uv[before[:, 1] == cell][0]
    assert after.tolist() == [[0, cell]]
    assert torch.allclose(to_uv[0] - start, torch.tensor([float(LATENT_K[0, 0]) * 0.25 / 4.0, 0.0]), atol=1e-4)
    assert not memory.keyframes[0].alive[2, 3]
    duplicated = MosaicMemory((keyframe,)).edit({0: chosen}, shift, keep_original=True)
    assert duplicated.keyframes[0].alive.all() and duplicated.keyframes[1].alive.sum() == 1
    with pytest.raises(IndexError, match="no 5 to edit"):
        MosaicMemory((keyframe,)).edit({5: chosen}, None)


def test_edits_that_are_no_edits_are_named():
    memory, chosen = MosaicMemory((wall(3.0, pose()),)), torch.ones(GRID, dtype=torch.bool)
    mirrored = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    for transform in (2.0 * torch.eye(4), torch.full((4, 4), torch.nan), torch.eye(3), mirrored):
        with pytest.raises(ValueError, match="a rigid transform is a finite rotation"):
            memory.edit({0: chosen}, transform)
        with pytest.raises(ValueError, match="a rigid transform is a finite rotation"):
            memory.splice(memory, transform)
    for mask in (chosen[0], chosen.float()):
        with pytest.raises(ValueError, match=r"mask of keyframe 0 is bool of shape \(4, 8\); got"):
            memory.edit({0: mask}, None)
    assert len(memory.splice(memory, torch.eye(4, dtype=torch.float64))) == 2
    with pytest.raises(ValueError, match="removes patches, and keep_original=True leaves them"):
        memory.edit({0: chosen}, None, keep_original=True)


def test_a_spliced_scene_stands_where_it_was_put():
    here, other = MosaicMemory((wall(3.0, pose()),)), MosaicMemory((wall(2.0, pose(), 7),))
    both = here.splice(other, pose(x=10.0))
    _, patches, _ = selected(both.keyframes, pose(x=10.0))
    assert set(patches[:, 0].tolist()) == {1} and len(patches) == GRID[0] * GRID[1]


def test_the_warped_latent_of_an_unmoved_view_is_the_latent():
    codec = LinearCodec(4 * 3 * 64, 8)
    frame = torch.rand(1, 1, 3, *SIZE, generator=torch.Generator().manual_seed(4)) * 2 - 1
    frames = frame.expand(1, 4, 3, *SIZE)
    keyframe = lifted(codec.encode(frames)[0], torch.full(SIZE, 3.0), pose().expand(4, 4, 4), K, torch.zeros(GRID), 0)
    shape = (codec.channels, *GRID)
    got = retrieve([[keyframe], []], pose().expand(2, 4, 4, 4), K, codec, shape)
    assert torch.allclose(codec.decode(got.warped_latent[:1]), frames, atol=1e-3)
    assert got.coverage.tolist() == [1.0, 0.0]
    assert got.patch_exists[0].any() and not got.patch_exists[1].any()


def test_members_of_a_batch_do_not_meet():
    codec = LinearCodec(CHANNELS, 8)
    one, two = [wall(3.0, pose(), 1), wall(2.5, pose(0.2), 2)], [wall(4.0, pose(), 3)]
    cameras = torch.stack([pose(0.1).expand(4, 4, 4), pose(0.0, 0.3).expand(4, 4, 4)])
    together = retrieve([one, two], cameras, K, codec, (CHANNELS, *GRID))
    alone = retrieve([two], cameras[1:], K, codec, (CHANNELS, *GRID))
    assert torch.allclose(together.warped_latent[1:], alone.warped_latent, atol=1e-5)
    assert torch.equal(together.patch_uv[1:], alone.patch_uv)


def test_members_are_chosen_for_together_as_they_are_alone():
    # A smooth wall's upper and lower cells cost the same, and how products of other shapes round would decide.
    many = [
        wall(3.0 + 0.1 * i, pose(0.1 * i, yaw_rad=0.2 * i - 0.8), i, generation=float(i % 3), rough=0.1)
        for i in range(9)
    ]
    memories = [many[:2], [], many[2:], [many[5].masked(torch.zeros(GRID, dtype=torch.bool))], many[4:5]]
    views = torch.stack([pose(0.05 * i, 0.1 * i, 0.1 * i).expand(2, 4, 4) for i in range(5)])
    budget = LATENT_K, GRID, 3, 20
    together = select(memories, views, *budget)
    for i, keyframes in enumerate(memories):
        alone = select([keyframes], views[i : i + 1], *budget)
        for name in ("sources", "patches", "patch_exists"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0]), name
        torch.testing.assert_close(together.patch_uv[i], alone.patch_uv[0])  # products of other shapes round otherwise
    assert together.patch_exists.sum(1).tolist()[1:4:2] == [0, 0] and together.patch_exists[2].all()
    assert (together.sources[[1, 3]] == -1).all() and (together.sources[2] >= 0).sum() > 1


def test_a_member_known_by_heart_goes_without_what_was_seen_from_afar_and_its_neighbour_does_not():
    far = [wall(30.0, pose(), 1, rough=0.1)]
    views = pose(0.0, 0.0, 0.0).expand(2, 2, 4, 4).clone()
    views[:, :, 2, 3] = 22.0  # most of the way there
    both = select([far, far], views, LATENT_K, GRID, 3, 20, [True, False])
    assert (both.sources >= 0).any(1).tolist() == [True, False]
    for i, afar in enumerate((True, False)):
        alone = select([far], views[:1], LATENT_K, GRID, 3, 20, [afar])
        assert torch.equal(alone.sources[0], both.sources[i]) and torch.equal(alone.patches[0], both.patches[i])


def test_members_that_are_recalled_for_together_recall_what_they_do_alone(monkeypatch):
    """As on an accelerator, where all members are chosen for and warped in one go."""
    codec = LinearCodec(CHANNELS, 8)
    # Rough, for on smooth walls how products of other shapes round would decide.
    shared, far = wall(3.0, pose(0.1), 1, rough=0.1), [wall(4.0, pose(yaw_rad=0.3), i, rough=0.1) for i in range(5)]
    memories = [[shared, wall(2.5, pose(0.2), 2, rough=0.1)], [], [shared], far]
    cameras = torch.stack([pose(0.1 * i, 0.1, 0.1 * i).expand(4, 4, 4) for i in range(4)])
    asked = cameras, K, codec, (CHANNELS, *GRID)
    alone = retrieve(memories, *asked)
    monkeypatch.setattr(retrieval, "map_members", lambda work, cameras, *inputs: work(cameras, *inputs))
    together = retrieve(memories, *asked)
    assert alone.patch_exists.any(1).tolist() == [True, False, True, True]
    for each in fields(retrieval.Retrieved):
        assert torch.allclose(getattr(together, each.name), getattr(alone, each.name), atol=1e-5), each.name


@pytest.mark.filterwarnings("ignore:.*fork")
def test_members_side_by_side_change_no_other_threads_and_have_their_own_after_a_fork():
    def told_by(work) -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    was = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        batching._workers.cache_clear()
        assert list(batching._workers(2).map(lambda _: torch.get_num_threads(), range(2))) == [1, 1]
        assert torch.get_num_threads() == told_by(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(was)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(list(batching._workers(2).map(abs, [-1, -2]))), daemon=True)
    child.start()
    assert receiver.poll(20), "a forked process waits for its parent's threads"
    assert receiver.recv() == [1, 2]


def test_keyframes_that_were_lifted_together_do_not_keep_one_another_alive():
    latents = torch.randn(3, *GRID, CHANNELS).movedim(-1, 1)  # the layout of a codec
    at = pose().expand(3, 4, 4, 4)
    places = torch.tensor([[0.0, 0.0, 0.0, trust] for trust in (0.5, 0.0, 0.25)])
    keyframes = lift(latents, torch.full((3, *SIZE), 2.0), at, K, torch.zeros(3, *GRID), range(3), places)
    assert [keyframe.trust for keyframe in keyframes] == [0.5, 0.0, 0.25]
    for keyframe, latent in zip(keyframes, latents, strict=True):
        assert torch.equal(keyframe.latent, latent)
        for name, value in keyframe.tensors.items():
            assert value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes, name


def test_a_keyframe_that_edits_left_empty_goes_before_one_that_shows_something():
    walls = tuple(wall(3.0, pose(x=x), step=step) for step, x in enumerate((0.0, 0.01, 10.0)))
    emptied = MosaicMemory(walls, capacity=3).edit({1: torch.ones(GRID, dtype=torch.bool)}, None)
    assert [keyframe.step for keyframe in emptied.update(wall(3.0, pose(x=20.0), step=3)).keyframes] == [0, 2, 3]


def test_a_file_that_lacks_part_of_a_memory_is_called_damaged(tmp_path):
    tensors, told = MosaicMemory((wall(3.0, pose()),)).tensors()
    save_with_metadata({"0.latent": tensors["0.latent"]}, tmp_path / "part", {"format": FORMAT, **told})
    del told["steps"]
    save_with_metadata(tensors, tmp_path / "stepless", {"format": FORMAT, **told})
    for name in ("part", "stepless"):
        with pytest.raises(ValueError, match="the memory is damaged"):
            MosaicMemory.load(tmp_path / name)


def test_remembering_leaves_the_old_memory_as_it_was_and_keeps_to_capacity():
    memory = MosaicMemory(capacity=3)
    grown = memory
    for step, x in enumerate((0.0, 5.0, 5.01, 10.0, 15.0)):
        grown = grown.update(wall(3.0, pose(x), step, step))
    assert len(memory) == 0
    # Of the two that stand side by side the older goes, then of the evenly spread ones the older of the first two.
    assert [keyframe.step for keyframe in grown.keyframes] == [0, 3, 4]
    assert len(MosaicMemory(capacity=0).update(wall(3.0, pose()))) == 0
    last = MosaicMemory(capacity=1).update(wall(3.0, pose(), 0, 0)).update(wall(3.0, pose(), 1, 1))
    assert [keyframe.step for keyframe in last.keyframes] == [1]


def test_save_and_load_are_exact_and_say_what_is_wrong(tmp_path):
    memory = MosaicMemory((wall(3.0, pose(), 1, 4), wall(2.0, pose(0.5), 2, 9)), 7, "codec and atlas")
    path = tmp_path / "memory.safetensors"
    memory.save(path)
    loaded = MosaicMemory.load(path)
    assert loaded.made_with == "codec and atlas"
    assert loaded.capacity == 7 and [keyframe.step for keyframe in loaded.keyframes] == [4, 9]
    for one, other in zip(memory.keyframes, loaded.keyframes, strict=True):
        assert torch.equal(one.latent, other.latent) and torch.equal(one.points_m, other.points_m)
    everything = {0: torch.ones(GRID, dtype=torch.bool)}
    for edited in (memory.edit(everything, pose(2.0), keep_original=True), memory.splice(memory, pose(0.0, 2.0))):
        edited.save(path)  # what was moved shares latents with what was not
        for one, other in zip(edited.keyframes, MosaicMemory.load(path).keyframes, strict=True):
            assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged or cut short"):
        MosaicMemory.load(path)
    with pytest.raises(FileNotFoundError, match="no memory file"):
        MosaicMemory.load(tmp_path / "nothing")


def test_lifting_takes_medians_and_refuses_depth_that_is_none():
    depth_m = torch.full(SIZE, 2.0)
    depth_m[:, 5:8] = 50.0
    depth_m[:1] = 9.0
    assert (median_per_cell(depth_m, GRID) == 2.0).all()
    depth_m[0, 0] = float("nan")
    with pytest.raises(ValueError, match="positive depth"):
        lifted(torch.zeros(CHANNELS, *GRID), depth_m, pose().expand(4, 4, 4), K, torch.zeros(GRID), 0)


def test_a_keyframe_comes_to_a_device_whole_and_stays_itself_where_it_is():
    keyframe = wall(3.0, pose(), step=4)
    assert keyframe.to(torch.device("cpu")) is keyframe
    elsewhere = keyframe.to(torch.device("meta"))
    assert elsewhere.step == 4 and all(value.is_meta for value in elsewhere.tensors.values())


def test_a_warped_latent_is_covered_by_what_covers_the_frames_that_it_shows():
    """A body turns away at the last instant: a codec of four frames still shows three, one of the last none."""
    turned = torch.stack([pose(), pose(), pose(), pose(yaw_rad=3.0)])[None]
    linear = LinearCodec(CHANNELS, 8)
    of_last = SimpleNamespace(
        channels=CHANNELS, stride=8, image_stride=8, instants=slice(-1, None), keyframe_image=lambda latents: latents,
        from_keyframe_images=lambda warped_frames: warped_frames[:, -1],
    )  # fmt: skip
    latent = torch.randn(CHANNELS, *GRID, generator=torch.Generator().manual_seed(0))
    depth_m = {8: torch.full(GRID, 3.0), 1: torch.full(SIZE, 3.0)}
    for codec, share in ((linear, 0.75), (of_last, 0.0)):
        k = rescale_intrinsics(K, SIZE, tuple(depth_m[codec.image_stride].shape))
        seen = lifted(latent, depth_m[codec.image_stride], pose().expand(4, 4, 4), k, torch.zeros(GRID), 0)
        told = retrieve([[seen]], turned, K, codec, (CHANNELS, *GRID))
        assert told.coverage[0] == 0.75 and (told.latent_coverage == share).all()
        assert torch.equal(told.coverage_mask[0, 12:16].mean(0), torch.zeros(GRID)), "coverage is told frame by frame"


def test_a_mask_may_be_any_bool_array_and_whatever_else_is_refused_by_name():
    memory, shift = MosaicMemory((wall(3.0, pose()),)), pose(x=0.25)
    mask = np.zeros(GRID, dtype=bool)
    mask[1] = True
    expected = memory.edit({0: torch.from_numpy(mask)}, shift)
    flipped = np.ascontiguousarray(mask[::-1])[::-1]  # negative strides
    columns = np.asfortranarray(mask)
    for taken in (mask, flipped, columns, torch.from_numpy(columns)):
        found = memory.edit({0: taken}, shift.numpy())
        for one, other in zip(found.keyframes, expected.keyframes, strict=True):
            assert torch.equal(one.alive, other.alive) and torch.equal(one.points_m, other.points_m)
    refused = [(mask.astype(np.int64), "int64"), (mask[:2], "(2, 8)"), ([[True]], "list"), (None, "NoneType")]
    for wrong, named in refused:
        with pytest.raises(ValueError, match=r"the mask of keyframe 0 is bool of shape \(4, 8\); got") as refusal:
            memory.edit({0: wrong}, None)
        assert named in str(refusal.value)


def test_what_does_not_fit_a_memory_is_not_spliced_into_it():
    memory = MosaicMemory((wall(3.0, pose()),))
    with pytest.raises(TypeError, match="is a MosaicMemory; got tuple"):
        memory.splice(memory.keyframes, torch.eye(4))
    larger = lifted(
        torch.zeros(CHANNELS, 8, 8), torch.full((64, 64), 3.0), pose().expand(4, 4, 4), K, torch.zeros(8, 8), 0
    )
    with pytest.raises(ValueError, match="keyframes of different sizes"):
        memory.splice(MosaicMemory((larger,)), torch.eye(4))
    assert len(MosaicMemory().splice(memory, np.eye(4))) == 1


def test_a_file_whose_parts_do_not_fit_together_is_damaged(tmp_path):
    tensors, metadata = MosaicMemory((wall(3.0, pose()), wall(3.0, pose(1.0)))).tensors()
    for name, value in (("1.alive", tensors["1.alive"][:2]), ("0.alive", tensors["0.alive"].float())):
        save_with_metadata({**tensors, name: value}, tmp_path / "odd", {"format": FORMAT, **metadata})
        with pytest.raises(ValueError, match=f"the memory is damaged \\(keyframe {name[0]} has"):
            MosaicMemory.load(tmp_path / "odd")


def test_tensors_of_any_layout_are_saved(tmp_path):
    columns = torch.arange(6.0).view(2, 3).T
    save_with_metadata({"columns": columns, "again": columns[1:]}, tmp_path / "file", {"format": "some"})
    tensors, metadata = load_with_metadata(tmp_path / "file", ("some",), "file")
    assert torch.equal(tensors["columns"], columns) and torch.equal(tensors["again"], columns[1:]) and metadata == {}
    with pytest.raises(ValueError, match="has the format some, and is no memory"):
        load_with_metadata(tmp_path / "file", (FORMAT,), "memory")


def test_old_method_names_warn_and_work():
    keyframe = wall(4.0, pose())
    with pytest.warns(DeprecationWarning, match="MosaicMemory.remember is deprecated: use update"):
        memory = MosaicMemory().remember(keyframe)
    assert memory.keyframes == (keyframe,)
    chosen = torch.ones_like(keyframe.alive)
    with pytest.warns(DeprecationWarning, match="MosaicMemory.edited is deprecated: use edit"):
        assert not memory.edited(chosen={0: chosen}, transform=None).keyframes[0].alive.any()
    with pytest.warns(DeprecationWarning, match="MosaicMemory.spliced is deprecated: use splice"):
        assert len(memory.spliced(memory, np.eye(4))) == 2
