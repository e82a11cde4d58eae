"""The learned world as a value machine: determinism, forks, batches, arms, and what bad input gets."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.geometry.control import Pose, yaw_matrix
from mosaic_gym.memory.retrieval import retrieve
from mosaic_gym.model.checkpoints import WorldModel, resolve
from mosaic_gym.model.codec import frames_to_uint8
from mosaic_gym.model.parts import round_to_half
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start, World
from tests.tiny import SIZE, pickled_only, tiny_model

FORWARD, LEFT, RIGHT = np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), np.array([0, 0, 1.0])


@pytest.fixture(scope="module")
def world() -> MosaicWorld:
    return MosaicWorld(tiny_model(), denoising_steps=2)


def walk(world: MosaicWorld, state, actions):
    frames = []
    for action in actions:
        (state,), (view,) = world.step([state], action[None])
        frames.append(view.frames)
    return state, np.stack(frames)


def test_it_is_a_world_and_its_views_have_their_shapes(world):
    assert isinstance(world, World)
    state, view = world.start(Start(seed=3))
    assert view.frames.shape == (4, *SIZE, 3) and view.frames.dtype == np.uint8
    assert view.depth_m.shape == SIZE and (view.depth_m > 0).all()
    (after,), (view,) = world.step([state], FORWARD[None])
    assert view.world_from_camera.shape == (4, 4, 4)
    assert np.allclose(view.world_from_camera[-1], after.pose.world_from_camera)
    assert after.step_index == 1 and view.keyframes == 2 and 0 < view.coverage <= 1


def test_same_seed_and_actions_give_the_same_frames_and_another_seed_does_not(world):
    state, _ = world.start(Start(seed=5))
    _, one = walk(world, state, [FORWARD, LEFT, LEFT])
    _, two = walk(world, world.start(Start(seed=5))[0], [FORWARD, LEFT, LEFT])
    other = dataclasses.replace(state, seed=6)
    _, three = walk(world, other, [FORWARD, LEFT, LEFT])
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


def test_a_fork_is_isolated_and_shares_what_is_equal(world):
    root, _ = walk(world, world.start(Start(seed=1))[0], [FORWARD, RIGHT])
    before = [keyframe.latent.clone() for keyframe in root.memory.keyframes]
    _, left_first = walk(world, root, [LEFT, LEFT])
    right, _ = walk(world, root, [RIGHT, FORWARD])
    _, left_again = walk(world, root, [LEFT, LEFT])
    assert np.array_equal(left_first, left_again)
    assert len(root.memory) == 3 and all(
        torch.equal(a, b.latent) for a, b in zip(before, root.memory.keyframes, strict=True)
    )
    assert right.memory.keyframes[0] is root.memory.keyframes[0]


def test_a_members_frames_do_not_depend_on_who_shares_its_batch(world):
    states = [world.start(Start(seed=seed))[0] for seed in (1, 2, 3)]
    _, together = world.step(states, np.stack([FORWARD, LEFT, RIGHT]))
    for state, action, view in zip(states, (FORWARD, LEFT, RIGHT), together, strict=True):
        _, (alone,) = world.step([state], action[None])
        assert np.abs(alone.frames.astype(int) - view.frames).max() <= 1


def test_a_context_for_one_look_gives_what_one_that_is_kept_gives(world):
    states = [world.start(Start(seed=seed))[0] for seed in (1, 2)]
    for actions in ([[1, 0, 0.5], [0, 0, 0]], [[1, 0, 1], [0, 0, -1]]):
        states, _ = world.step(states, np.array(actions, dtype=float))
    cameras = torch.stack([state.history_cameras for state in states])
    cameras[1] = cameras[1] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks the other way
    retrieved = world.retrieve(states, cameras)
    assert retrieved.patch_exists.any() and not retrieved.patch_exists.all(), "some rows are padding"
    history, text = (torch.stack([getattr(state, name) for state in states]) for name in ("history", "text"))
    where = (
        history,
        cameras,
        retrieved,
        cameras,
        world.layout.intrinsics.expand(2, 3, 3),
        (world.height, world.width),
        text,
    )
    transformer = world.model.transformer
    noise, time = torch.randn_like(history), torch.tensor([1000.0, 400.0])
    with torch.no_grad():
        kept, once = (transformer(noise, time, transformer.read(*where, each)) for each in (False, True))
        forgetful = transformer(noise, time, transformer.read(torch.zeros_like(history), *where[1:], True))
    assert (once - kept).abs().max() <= 1e-4 * kept.abs().max()
    assert (once - forgetful).abs().max() > 1e-3 * kept.abs().max(), "what is read matters"


def test_without_the_network_what_is_seen_is_the_warp(world):
    bare = MosaicWorld(world.model, network=False, atlas=False)
    state, view = bare.start(Start(seed=4))
    (after,), (shown,) = bare.step([state], RIGHT[None])
    k = torch.tensor(world.model.settings.image_from_camera)
    cameras = torch.tensor(shown.world_from_camera, dtype=torch.float32)[None]
    codec = world.model.codec
    warped = retrieve([state.memory.keyframes], cameras, k, codec, tuple(state.history.shape[1:])).warped_latent
    assert np.array_equal(shown.frames, frames_to_uint8(codec.decode(warped))[0].numpy())
    (_,), (dreamt,) = world.step([state], RIGHT[None])
    assert not np.array_equal(shown.frames, dreamt.frames)


def test_forgetting_and_last_frame_only_are_capacities(world):
    for capacity, steps in ((0, []), (1, [3])):
        limited = MosaicWorld(world.model, capacity=capacity)
        state, _ = walk(limited, limited.start(Start(seed=1))[0], [LEFT] * 3)
        assert [keyframe.step for keyframe in state.memory.keyframes] == steps


def test_truly_seen_frames_are_generation_zero_and_dreamt_ones_are_not(world):
    state, view = world.start(Start(seed=2))
    poses = [state.pose] * 4
    seen = world.observe(state, view.frames, poses)
    assert float(seen.memory.keyframes[-1].generation.max()) == 0.0
    (dreamt,), _ = world.generate([state], [poses])
    assert float(dreamt.memory.keyframes[-1].generation.min()) >= 1.0


def test_a_given_image_does_not_get_another_views_caption(world):
    image = np.zeros((*SIZE, 3), np.uint8)
    told = {world.start(Start(seed=seed))[0].prompt for seed in range(24)}
    assert told == set(world.model.start_prompts)
    assert world.start(Start(seed=1, image=image))[0].prompt == ""
    assert world.start(Start(seed=1, image=image, prompt="a red hall"))[0].prompt == "a red hall"
    assert world.start(Start(seed=1, prompt="a red hall"))[0].prompt == "a red hall"
    assert world.start(Start(seed=1, prompt=""))[0].prompt == ""


def test_another_prompt_is_another_world(world):
    image = np.full((*SIZE, 3), 90, np.uint8)
    one, _ = world.start(Start(seed=1, image=image, prompt="a red hall"))
    two, _ = world.start(Start(seed=1, image=image, prompt="a blue room"))
    assert not np.array_equal(walk(world, one, [LEFT] * 3)[1], walk(world, two, [LEFT] * 3)[1])


@pytest.mark.parametrize(
    "start,message",
    [
        (Start(0, image=np.zeros((5, 5, 3), np.uint8)), "start image is uint8 of shape"),
        (Start(0, image=np.zeros((*SIZE, 3), np.float32)), "start image is uint8 of shape"),
        (Start(0, world_from_camera=np.zeros((3, 4))), "finite world_from_camera"),
        (Start(0, world_from_camera=np.diag([1.0, -1.0, -1.0, 1.0])), "upside down"),
        (Start(0, prompt="x" * 97), "at most 96 bytes"),
    ],
)
def test_bad_starts_name_the_fix(world, start, message):
    with pytest.raises(ValueError, match=message):
        world.start(start)


def test_a_memory_of_another_checkpoint_is_refused(world):
    other = tiny_model()
    other.codec = type(other.codec)(channels=30, stride=8)
    memory = world.start(Start(seed=0))[0].memory
    with pytest.raises(ValueError, match="another codec or atlas"):
        MosaicWorld(other).start(Start(seed=0, memory=memory))
    # A memory without a fingerprint is refused by the shape of its latents.
    with pytest.raises(ValueError, match="load it in the checkpoint that made it"):
        MosaicWorld(other).start(Start(seed=0, memory=dataclasses.replace(memory, made_with="")))
    alike = tiny_model()
    alike.codec.mean.data += 0.1
    with pytest.raises(ValueError, match="another codec or atlas"):
        MosaicWorld(alike).start(Start(seed=0, memory=memory))
    own, _ = MosaicWorld(tiny_model()).start(Start(seed=0, memory=memory))
    assert own.memory.made_with == memory.made_with != "" and len(own.memory) == len(memory) + 1
    with pytest.raises(ValueError, match="another codec or atlas"):
        memory.splice(MosaicWorld(alike).start(Start(seed=0))[0].memory, torch.eye(4))
    with pytest.raises(TypeError, match="MosaicMemory.load"):
        world.start(Start(seed=0, memory={"a": 1}))


def test_an_episode_can_begin_in_a_memory(world):
    state, _ = walk(world, world.start(Start(seed=1))[0], [FORWARD, LEFT, FORWARD])
    there, _ = walk(world, world.start(Start(seed=1))[0], [FORWARD])
    begun, view = world.start(Start(seed=9, memory=state.memory))
    np.testing.assert_allclose(begun.pose.world_from_camera, state.pose.world_from_camera, atol=1e-6)
    back, seen = world.start(Start(seed=9, memory=state.memory, world_from_camera=there.pose.world_from_camera))
    np.testing.assert_allclose(back.pose.world_from_camera, there.pose.world_from_camera, atol=1e-6)
    for one, shown in ((begun, view), (back, seen)):
        assert one.step_index == 0 and len(one.memory) == len(state.memory) + 1
        fresh = one.memory.keyframes[-1]
        assert fresh.step == 0 and (fresh.generation > 0).any(), "what nobody showed is not taken for true"
        assert shown.coverage > 0.5 and (shown.reward, shown.terminated) == (0.0, False), "nobody has made a step"
    again, same = world.start(Start(seed=9, memory=state.memory))
    np.testing.assert_array_equal(same.frames, view.frames)
    with pytest.raises(ValueError, match="an image beside a memory needs options..pose.."):
        world.start(Start(seed=0, memory=state.memory, image=view.frames[-1]))


def test_what_an_episode_begins_with_is_put_on_the_scale_of_its_memory(world):
    begun, view = world.start(Start(seed=3))
    (seen,) = begun.memory.keyframes
    farther = dataclasses.replace(seen, depth_m=seen.depth_m * 1.3, points_m=seen.points_m * 1.3)
    memory = dataclasses.replace(begun.memory, keyframes=(farther,))
    again, shown = world.start(
        Start(seed=3, memory=memory, image=view.frames[-1], world_from_camera=begun.pose.world_from_camera)
    )
    ratio = np.median(shown.depth_m / view.depth_m)
    assert ratio == pytest.approx(1.3, abs=0.05)
    np.testing.assert_allclose(again.memory.keyframes[-1].depth_m.numpy(), shown.depth_m, rtol=1e-5)


def test_a_world_that_remembers_nothing_covers_nothing_from_the_beginning_on(world):
    assert world.start(Start(seed=0))[1].coverage == 1.0
    forgetful = MosaicWorld(world.model, capacity=0)
    assert forgetful.start(Start(seed=0))[1].coverage == 0.0
    memory = world.start(Start(seed=0))[0].memory
    with pytest.raises(ValueError, match="keeps no memory"):
        forgetful.start(Start(seed=0, memory=memory))
    with pytest.raises(ValueError, match="capacity is a whole number from 0, or None; got -1"):
        MosaicWorld(world.model, capacity=-1)


def test_an_accelerator_that_is_too_small_is_named_by_what_it_has_no_room_for(world, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nMore of it.")

    state, _ = world.start(Start(seed=0))
    _, (before,) = world.step([state], RIGHT[None])
    for part, method, component in (
        ("transformer", "forward", "the transformer"),
        ("depth", "estimate", "the depth estimator"),
        ("codec", "decode_next", "decoding frames"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(world.model, part), method, full)
            told = (
                rf"too little memory for {component}\..*resolution.*'offload': 'model'.*Tried to allocate 3.00 GiB.\)$"
            )
            with pytest.raises(MemoryError, match=told):
                world.step([state], RIGHT[None])
    _, (after,) = world.step([state], RIGHT[None])
    assert np.array_equal(before.frames, after.frames), "and nothing is lost"


def test_bad_actions_move_nothing(world):
    state, _ = world.start(Start(seed=0))
    for actions, message in (
        (np.zeros((2, 3)), "expected one action for each of 1 states"),
        (np.full((1, 3), np.nan), "finite and in"),
        (np.full((1, 3), 1.5), "finite and in"),
        (np.zeros((1, 2)), "shape \\(3,\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            world.step([state], actions)
    with pytest.raises(ValueError, match="at least one; got 0"):
        world.step([], np.zeros((0, 3)))
    assert state.step_index == 0 and len(state.memory) == 1


def test_a_start_pose_is_where_the_body_stands(world):
    pose = np.eye(4)
    pose[:3, :3] = yaw_matrix(0.8)
    pose[:3, 3] = (4.0, 0.0, -2.0)
    state, view = world.start(Start(seed=0, world_from_camera=pose))
    assert np.allclose(view.world_from_camera, pose)


def test_the_whole_model_is_one_folder(world, tmp_path):
    world.model.save_pretrained(tmp_path / "copy")
    copy = MosaicWorld.from_pretrained(tmp_path / "copy", denoising_steps=2)
    one = walk(world, world.start(Start(seed=9))[0], [FORWARD, LEFT])[1]
    assert np.array_equal(one, walk(copy, copy.start(Start(seed=9))[0], [FORWARD, LEFT])[1])
    assert not list((tmp_path / "copy").rglob("*.bin"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def without(path, key):
    told = json.loads(path.read_text())
    del told[key]
    path.write_text(json.dumps(told))


def test_a_fingerprint_is_of_every_network_that_a_future_depends_on():
    mine = tiny_model()
    for part in ("depth", "reward_heads", "atlas", "refiner"):
        other = tiny_model()
        next(getattr(other, part).parameters()).data += 0.5
        assert other.fingerprint != mine.fingerprint, part


def test_a_world_keeps_as_much_as_it_is_made_for(world):
    state, _ = walk(world, world.start(Start(seed=1))[0], [LEFT] * 3)
    for capacity in (0, 99):
        begun, _ = world.start(Start(seed=2, memory=dataclasses.replace(state.memory, capacity=capacity)))
        assert begun.memory.capacity == world.capacity and len(begun.memory) == 5
    spliced = state.memory.splice(state.memory, torch.eye(4))
    full = dataclasses.replace(spliced, capacity=3).update(state.memory.keyframes[0])
    assert len(full) == 3


def test_a_world_without_heads_pays_nothing_and_the_engine_task_says_so(world):
    silent = MosaicWorld(dataclasses.replace(world.model, reward_heads=None))
    for make in (lambda task: WorldEnv(silent, task=task), lambda task: Members(silent, 2, task=task)):
        make("explore")
        with pytest.raises(ValueError, match="mosaic-gym train reward-heads"):
            make("simulator")


def test_damaged_folders_name_what_is_wrong(world, tmp_path):
    world.model.save_pretrained(tmp_path / "copy")
    weights = tmp_path / "copy" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="'transformer'.*damaged"):
        WorldModel.from_pretrained(tmp_path / "copy")
    weights.unlink()
    with pytest.raises(ValueError, match="lacks its part 'transformer'"):
        WorldModel.from_pretrained(tmp_path / "copy")
    for number, (break_it, said) in enumerate([
        (lambda folder: cut(folder / "world.json"), "world.json is damaged or cut short"),
        (lambda folder: without(folder / "world.json", "height"), r"lacks the fields \['height'\]"),
        (lambda folder: cut(folder / "starts.safetensors"), "starts.safetensors is missing or damaged"),
        (lambda folder: save_file({"images": torch.zeros(1)}, folder / "starts.safetensors"), "missing or damaged"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "lacks its part 'scheduler'"),
        (lambda folder: Refiner((16, 8, 8)).save_config(folder / "detail"), "'detail'.*another shape"),
    ]):  # fmt: skip
        world.model.save_pretrained(tmp_path / str(number))
        break_it(tmp_path / str(number))
        with pytest.raises(ValueError, match=said):
            WorldModel.from_pretrained(tmp_path / str(number))
    with pytest.raises(ValueError, match="unknown checkpoint 'doom-huge': give one of"):
        resolve("doom-huge")


@pytest.mark.parametrize("part", ["transformer", "detail", "depth", "atlas"])
def test_pickled_weights_are_refused_unread(world, part, tmp_path):
    world.model.save_pretrained(tmp_path / "copy")
    pickled_only(tmp_path / "copy" / part, "diffusion_pytorch_model", tmp_path / "sprung")
    with pytest.raises(ValueError, match=f"lacks its part '{part}'"):
        WorldModel.from_pretrained(tmp_path / "copy")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        torch.load(tmp_path / "copy" / part / "diffusion_pytorch_model.bin")
    torch.load(tmp_path / "copy" / part / "diffusion_pytorch_model.bin", weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap is one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA")
def test_cuda_asked_for_and_absent_is_an_error():
    with pytest.raises(ValueError, match="has no CUDA device; use device='cpu'"):
        MosaicWorld(tiny_model(), device="cuda")


def test_states_and_views_keep_nothing_but_what_they_show(world):
    states = [world.start(Start(seed=seed))[0] for seed in range(2)]
    states, views = world.step(states, np.stack([FORWARD, RIGHT]))
    for state, view in zip(states, views, strict=True):
        for kept in (state.history, state.history_cameras):
            assert kept.untyped_storage().nbytes() == kept.nbytes
        assert view.frames.base is None and view.depth_m.base is None


def test_what_is_seen_is_checked(world):
    state, view = world.start(Start(seed=0))
    poses = world.control.advance(state.pose, FORWARD)
    world.observe(state, view.frames, poses)
    for frames, of, said in (
        (view.frames / 255.0, poses, "an observation is uint8 of shape"),
        (view.frames[:, :8], poses, "an observation is uint8 of shape"),
        (view.frames, poses[:3], "4 frames need 4 poses; got 3"),
    ):
        with pytest.raises(ValueError, match=said):
            world.observe(state, frames, of)
        with pytest.raises(ValueError, match=said):
            world.start_from_frames(frames, of, 0, "")
    with pytest.raises(ValueError, match="2 states take the poses of 2 bodies; got those of 1"):
        world.generate([state, state], [poses])


def test_a_saved_world_does_not_tell_where_its_parts_came_from(tmp_path):
    tiny_model().save_pretrained(tmp_path / "first")
    WorldModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    told = "".join(path.read_text() for path in (tmp_path / "second").rglob("*.json"))
    assert str(tmp_path) not in told


def test_weights_that_float16_holds_are_saved_in_it_and_nothing_is_lost(tmp_path):
    model = tiny_model()
    round_to_half(model.atlas)
    model.save_pretrained(tmp_path)
    weights = {name: load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("atlas", "detail")}
    assert {value.dtype for value in weights["atlas"].values()} == {torch.float16}
    assert {value.dtype for value in weights["detail"].values()} == {torch.float32}
    again = WorldModel.from_pretrained(tmp_path)
    assert again.fingerprint == model.fingerprint
    assert next(again.atlas.parameters()).dtype == torch.float32


TILT = np.array([[1, 0, 0, 0], [0, np.cos(0.26), -np.sin(0.26), 0], [0, np.sin(0.26), np.cos(0.26), 0], [0, 0, 0, 1]])
"""A camera pitched by 15 degrees."""


def unusable(pose: Pose, value: float) -> Pose:
    camera = pose.world_from_camera.copy()
    camera[0, 3] = value
    return Pose(camera)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_poses_of_lost_tracking_are_refused_by_index_and_change_nothing(world, value):
    state, view = world.start(Start(seed=0))
    poses = world.control.advance(state.pose, FORWARD)
    poses[2] = unusable(poses[2], value)
    keyframes = len(state.memory)
    for call in (
        lambda: world.observe(state, view.frames, poses),
        lambda: world.start_from_frames(view.frames, poses, 0, ""),
        lambda: world.generate([state], [poses]),
        lambda: world.generate_clip([state], [[*poses, *poses]]),
    ):
        with pytest.raises(ValueError, match="pose 2.*finite"):
            call()
    assert len(state.memory) == keyframes


def test_a_tilted_camera_stays_tilted(world):
    state, view = world.start(Start(seed=0))
    after = world.observe(state, view.frames, [Pose(TILT)] * 4)
    assert np.allclose(after.memory.keyframes[-1].world_from_keyframe.numpy(), TILT, atol=1e-6)
    (walked,), (shown,) = world.step([after], FORWARD[None])
    assert np.allclose(shown.world_from_camera[-1][:3, :3], TILT[:3, :3], atol=1e-9), "the pitch of the observed camera"
    assert walked.pose.world_from_camera[1, 3] == pytest.approx(0.0), "walking stays horizontal"


def test_frames_of_any_strides_are_taken(world):
    state, view = world.start(Start(seed=0))
    poses = world.control.advance(state.pose, FORWARD)
    bgr = np.ascontiguousarray(view.frames[..., ::-1])
    for frames in (bgr[..., ::-1], np.asfortranarray(view.frames), torch.tensor(view.frames)):
        assert isinstance(frames, torch.Tensor) or frames.strides != view.frames.strides
        one, other = world.observe(state, frames, poses), world.observe(state, view.frames, poses)
        assert torch.equal(one.history, other.history)
        one, other = (world.start_from_frames(given, poses, 0, "") for given in (frames, view.frames))
        assert torch.equal(one.history, other.history)
    image = view.frames[-1]
    _, mirrored = world.start(Start(seed=0, image=image[:, ::-1]))
    assert np.array_equal(mirrored.frames[-1], image[:, ::-1])


def test_old_method_names_warn_and_work(world):
    state, _ = world.start(Start(seed=0))
    poses = world.control.advance(state.pose, FORWARD)
    with pytest.warns(DeprecationWarning, match="MosaicWorld.see_chunk is deprecated: use generate_clip"):
        _, views = world.see_chunk([state], [poses])
    assert np.array_equal(views[0][0].frames, world.generate([state], [poses])[1][0].frames)
    with pytest.warns(DeprecationWarning, match="MosaicWorld.begin is deprecated: use start_from_frames"):
        world.begin(views[0][0].frames, poses, 0, "")


def test_cameras_in_place_of_poses_are_refused_with_what_makes_poses(world):
    state, view = world.start(Start(seed=0))
    cameras, pose = view.world_from_camera, state.pose
    for call in (
        lambda poses: world.observe(state, view.frames, poses),
        lambda poses: world.start_from_frames(view.frames, poses, 0, ""),
        lambda poses: world.generate([state], [poses]),
    ):
        with pytest.raises(ValueError, match="list of Pose objects.*ndarray among them.*pose_at"):
            call(cameras)
        with pytest.raises(ValueError, match="got one Pose"):
            call(pose)
    with pytest.raises(ValueError, match="got one Pose"):
        world.generate([state], pose)
