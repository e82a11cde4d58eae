"""A pretrained Wan pipeline as a world and as an environment: real classes, tiny size, random weights."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from gymnasium.error import ResetNeeded

import mosaic_gym  # noqa: F401, registers the ids
from mosaic_gym import Start, check_world
from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds.generation import camera_tensor
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.spatial_memory import estimate_depth
from tests.tiny import save_depth, tiny_model
from tests.tiny_wan import CHANNELS, SIZE, save_pipeline, tiny_pipeline

FORWARD, TURN = (np.array([ACTIONS[name]]) for name in ("forward", "turn_right"))


@pytest.fixture(scope="module")
def kwargs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    loading = {"dtype": "float32", "depth": str(save_depth(folder / "depth")), "guidance": 2.0}
    return {"checkpoint": str(save_pipeline(folder / "pipeline")), "denoising_steps": 2, "loading": loading}


@pytest.fixture(scope="module")
def world(kwargs):
    return MosaicWorld.from_pretrained(**kwargs, size=SIZE)


def test_it_is_an_environment_like_any_other(kwargs):
    env = gym.make("MosaicWorld-v0", **kwargs, resolution=list(SIZE), observation="dict")
    seen, info = env.reset(seed=3)
    assert env.observation_space.contains(seen) and seen["image"].shape == (*SIZE, 3)
    first = seen["image"].copy()
    for action in (1, 1, 5):
        seen, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(seen) and not terminated and not truncated
    assert info["memory_keyframes"] == 4 and info["coverage"] > 0.3
    again, _ = env.reset(seed=3)
    assert np.array_equal(again["image"], first)
    env.unwrapped.prompt_now("a red hall")
    assert env.unwrapped.state.prompt == "a red hall"
    env.close()


def test_a_vector_of_them_goes_through_one_call(kwargs):
    envs = gym.make_vec("MosaicWorld-v0", num_envs=2, **kwargs, resolution=list(SIZE))
    with pytest.raises(ResetNeeded, match=r"members .0, 1. have not started: reset them first"):
        envs.unwrapped.prompt_now("a red hall")
    envs.reset(seed=1)
    prompts = ["a red hall", "a garden"]
    envs.unwrapped.prompt_now(prompts)
    assert [episode.state.prompt for episode in envs.unwrapped.members.episodes] == prompts
    with pytest.raises(ValueError, match="one prompt, or 2; got 3"):
        envs.unwrapped.prompt_now([*prompts, "a sea"])
    envs.unwrapped.prompt_now("a sea")
    assert {episode.state.prompt for episode in envs.unwrapped.members.episodes} == {"a sea"}
    images, _ = envs.reset(seed=[3, 4])
    images, _, _, _, infos = envs.step([1, 5])
    assert images.shape == (2, *SIZE, 3) and infos["memory_keyframes"].tolist() == [2, 2]
    envs.close()


@pytest.mark.parametrize("causal", [False, True])
def test_it_conforms(kwargs, causal):
    loading = {**kwargs["loading"], "causal": causal}
    check_world(partial(MosaicWorld.from_pretrained, **{**kwargs, "loading": loading}, size=SIZE), steps=2)


def test_a_first_frame_follows_the_prompt_and_the_seed(world):
    asked = (1, "red"), (1, "hall"), (2, "red")
    shown = [world.start(Start(seed, prompt=prompt))[1].frames for seed, prompt in asked]
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[0], shown[2])
    state, _ = world.start(Start(1, prompt="red"))
    one, other = (world.step([each], FORWARD)[1][0] for each in (state, world.with_prompt(state, "hall")))
    assert not np.array_equal(one.frames, other.frames)


def test_each_step_begins_from_the_last_frame_and_a_students_clip_goes_on(kwargs, world):
    state, _ = world.start(Start(1))
    (state,), (view,) = world.step([state], FORWARD)
    last = torch.from_numpy(view.frames).float().permute(0, 3, 1, 2)[None] / 127.5 - 1
    assert torch.allclose(state.history[0], world.model.codec.encode(last)[0], atol=0.05)
    with pytest.raises(RuntimeError, match="ask for pixels"):
        world.step_latents([state], FORWARD)
    student = MosaicWorld.from_pretrained(**{**kwargs, "loading": {**kwargs["loading"], "causal": True}}, size=SIZE)
    state, _ = student.start(Start(1))
    latents = [state.history[-1]]
    frames = []
    for _ in range(3):
        (state,), (view,) = student.step([state], FORWARD)
        latents.append(state.history[-1])
        frames.append(view.frames)
    codec = student.model.codec
    clip = torch.stack(latents)[None].transpose(1, 2) * codec.deviation + codec.mean
    whole = codec.vae.decode(clip).sample[0, :, 1:].permute(1, 2, 3, 0)
    assert np.abs(((whole.numpy() + 1) * 127.5).round() - np.concatenate(frames)).max() <= 1


def test_frames_that_are_no_numbers_are_told_and_move_nobody(kwargs):
    env = gym.make("MosaicWorld-v0", **kwargs, resolution=list(SIZE)).unwrapped
    env.reset(seed=1)
    before = env.state
    env.world.model.transformer.proj_out.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="returned NaN or infinity, and no state has moved.*'dtype': 'bfloat16'"):
        env.step(1)
    assert env.state is before


def test_a_chunk_is_one_clip_and_memory_is_written_behind_it(world):
    state, _ = world.start(Start(1))
    poses = world.control.advance(state.pose, FORWARD[0])
    onward = replace(poses[-1])
    poses = [*poses, *world.control.advance(onward, TURN[0])]
    (after,), (views,) = world.generate_clip([state], [poses])
    assert len(views) == 2 and [view.keyframes for view in views] == [2, 3] and after.step_index == 2
    assert views[1].frames.shape == (FRAMES_PER_STEP, *SIZE, 3)
    assert np.allclose(after.pose.world_from_camera, poses[-1].world_from_camera)
    with pytest.raises(ValueError, match="4 poses a step"):
        world.generate_clip([state], [poses[:6]])


@pytest.mark.parametrize("kind", ["student", "trained from scratch"])
def test_a_causal_network_makes_a_clip_frame_by_frame(kwargs, kind):
    """It has learnt nothing else: without memory, whose reading differs, a clip is what its steps are."""
    if kind == "student":
        told = {**kwargs, "loading": {**kwargs["loading"], "causal": True}}
        model = WorldModel.from_pretrained(told["checkpoint"], SIZE, told["loading"])
    else:
        model = tiny_model()
    world = MosaicWorld(model, denoising_steps=2, capacity=0)
    states = [world.start(Start(seed))[0] for seed in (1, 2)]
    paths = []
    for state, action in zip(states, (FORWARD[0], TURN[0]), strict=True):
        poses = [state.pose]
        for _ in range(3):
            poses += world.control.advance(poses[-1], action)
        paths.append(poses[1:])
    after, clips = world.generate_clip(states, paths)
    for k in range(3):
        states, views = world.generate(states, [path[4 * k : 4 * k + 4] for path in paths])
        for clip, view in zip(clips, views, strict=True):
            assert np.abs(clip[k].frames.astype(int) - view.frames).max() <= 1
            assert (clip[k].reward, clip[k].terminated) == (view.reward, view.terminated)
    for one, other in zip(after, states, strict=True):
        assert torch.allclose(one.history, other.history, atol=1e-4) and one.step_index == other.step_index == 3


@pytest.mark.parametrize("told", ["patches", "warped"])
def test_memory_reaches_the_picture(world, told):
    state, _ = world.start(Start(1))
    cameras = camera_tensor([world.control.advance(state.pose, FORWARD[0])], world.device)
    retrieved = world.retrieve([state], cameras)
    assert retrieved.patch_exists.any() and retrieved.pixels_covered.any()
    assert retrieved.patches.shape[-1] == retrieved.warped_latent.shape[1] * 4  # a patch is what a token spans
    if told == "patches":
        silent = replace(retrieved, patch_exists=torch.zeros_like(retrieved.patch_exists))
    else:
        silent = replace(retrieved, latent_coverage=torch.zeros_like(retrieved.latent_coverage))
    one, other = (world.sample([state], each, cameras) for each in (retrieved, silent))
    assert (one - other).abs().max() > 1e-4


def test_what_covers_only_frames_before_the_last_is_no_clean_token(world):
    state, _ = world.start(Start(1))
    cameras = camera_tensor([world.control.advance(state.pose, FORWARD[0])], world.device)
    cameras[:, :, 3] = cameras[:, :, 3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # turned about
    retrieved = world.retrieve([state], cameras)
    shown = retrieved.pixels_covered[0].float().mean((1, 2))
    assert (shown[:3] > 0.5).all() and shown[3] == 0
    context = world.model.transformer.read(
        state.history[None],
        state.history_cameras[None],
        retrieved,
        cameras,
        world.layout.intrinsics[None],
        SIZE,
        state.text[None],
    )
    assert not world.model.transformer._warped_tokens(context, 1).exists.any()


def test_a_relative_depth_model_lets_the_body_move_and_keeps_the_scale_of_its_first_look(kwargs):
    loading = {**kwargs["loading"], "inverse_depth": True}
    world = MosaicWorld.from_pretrained(**{**kwargs, "loading": loading}, size=SIZE)
    ramp = torch.linspace(5.0, 40.0, SIZE[1]).expand(1, *SIZE)

    def answering(scale):
        world.model.depth.model = lambda pixel_values: SimpleNamespace(predicted_depth=scale * ramp)

    answering(1.0)
    state, first = world.start(Start(1))
    assert np.median(first.depth_m) == pytest.approx(3.0, rel=0.05)
    (poses,) = world.advance([state], FORWARD)
    assert np.linalg.norm(poses[-1].world_from_camera[:3, 3]) > 0.1
    answering(7.0)
    noop = np.zeros((1, 3))
    for _ in range(2):
        (state,), (view,) = world.step([state], noop)
        assert np.median(view.depth_m / first.depth_m) == pytest.approx(1.0, rel=0.02)
    # Of what memory has not seen, half is new: the wall keeps its scale, though the frame's own median is another's.
    near = 20.0 * ramp.where(torch.arange(SIZE[1]) < SIZE[1] // 2, 10.0 * ramp)
    world.model.depth.model = lambda pixel_values: SimpleNamespace(predicted_depth=near)
    half = torch.full(SIZE, torch.inf)
    half[:, : SIZE[1] // 2] = torch.from_numpy(first.depth_m)[:, : SIZE[1] // 2]
    aligned = estimate_depth(
        world.model.depth, torch.zeros(1, 1, 4, 3, *SIZE), SimpleNamespace(depth_m=half[None]), world.layout.intrinsics
    )[0, 0]
    known = slice(None), slice(SIZE[1] // 2)
    assert np.allclose(aligned[known], first.depth_m[known], rtol=0.02)


@pytest.mark.slow
def test_two_minutes_do_not_outgrow_the_capacity(kwargs):
    world = MosaicWorld.from_pretrained(**{**kwargs, "denoising_steps": 1}, size=SIZE)
    world.capacity = 6
    state, _ = world.start(Start(0))
    sizes, streams = [], []
    for _ in range(10):  # 480 steps, 1920 frames: two minutes at sixteen a second
        poses = [state.pose]
        for step in range(48):
            poses.extend(world.control.advance(poses[-1], (FORWARD, TURN)[step % 2][0]))
        (state,), (views,) = world.generate_clip([state], [poses[1:]])
        sizes.append(len(state.memory))
        streams.append(sum(part.numel() for part in state.stream if isinstance(part, torch.Tensor)))
        assert np.isfinite(views[-1].depth_m).all()
    assert sizes == [6] * 10 and len(set(streams)) == 1


def held(tensors):
    """Bytes of what tensors keep alive, which may be more than they show."""
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def test_a_state_holds_no_more_than_some_latents(world):
    """What decoding goes on from is a thousand times as large, and follows from the last latent."""
    states = [world.start(Start(seed))[0] for seed in (1, 2)]
    a_latent = states[0].history.nbytes
    poses = [world.control.advance(state.pose, FORWARD[0]) for state in states]
    for state in (
        *states,
        *world.step(states, np.concatenate([FORWARD, TURN]))[0],
        *world.generate_clip(states, [[*path, *world.control.advance(path[-1], TURN[0])] for path in poses])[0],
        world.observe(states[0], np.zeros((FRAMES_PER_STEP, *SIZE, 3), dtype=np.uint8), poses[0]),
    ):
        assert held(part for part in state.stream if isinstance(part, torch.Tensor)) <= a_latent
        kept = {name: value for name, value in world.pack(state)[0].items() if name != "text"}
        assert held(kept.values()) < 6 * a_latent * (1 + len(state.memory)), {n: v.nbytes for n, v in kept.items()}


def test_what_decoding_goes_on_from_follows_from_the_last_latent_bit_for_bit(world):
    codec = world.model.codec
    state, _ = world.start(Start(1))
    (state,), _ = world.step([state], FORWARD)
    with torch.no_grad():
        shown, clip = codec.decode_next(state.history, [()])
        assert np.array_equal(
            world.current_frame(state), ((shown[0, -1] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        )
    (one,), (view,) = world.step([state], TURN)
    (other,), (same,) = world.step([replace(state, stream=clip[0])], TURN)
    assert len(clip[0]) > 8 and np.array_equal(view.frames, same.frames) and torch.equal(one.history, other.history)


def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nMore of it.")


@pytest.mark.parametrize(
    ("part", "component"),
    [
        ("transformer", "the transformer"),
        ("text encoder", "the text encoder"),
        ("encoder", "encoding the first frame"),
        ("decoder", "decoding frames"),
        ("depth", "the depth estimator"),
        ("lift", "keyframes"),
        ("recall", "the views that memory retrieves"),
    ],
)
def test_whatever_finds_no_room_is_named(world, monkeypatch, part, component):
    """In an episode that begins from a prompt alone, from an image, and in a memory; and in what comes after."""
    model, image = world.model, np.zeros((*SIZE, 3), dtype=np.uint8)
    four, rest = np.zeros((FRAMES_PER_STEP, *SIZE, 3), dtype=np.uint8), np.zeros((1, 3))
    state, _ = world.start(Start(1))
    path = world.control.advance(state.pose, FORWARD[0])
    acts = {
        "prompt alone": lambda: world.start(Start(1, prompt="red")),
        "image": lambda: world.start(Start(1, image=image)),
        "memory": lambda: world.start(Start(1, memory=state.memory)),
        "step": lambda: world.step([state], rest),
        "observe": lambda: world.observe(state, four, path),
        "prompted": lambda: world.with_prompt(state, "hall"),
        "look": lambda: world.current_frame(state),
    }
    place = {
        "transformer": (model.transformer, "forward"),
        "text encoder": (model.pipeline.text_encoder, "forward"),
        "encoder": (model.codec.vae, "encode"),
        "decoder": (model.codec.vae.decoder, "forward"),
        "depth": (model.depth, "estimate"),
        "lift": ("mosaic_gym.worlds.spatial_memory.lift",),
        "recall": ("mosaic_gym.worlds.spatial_memory.retrieve",),
    }[part]
    needs = {
        "transformer": {"prompt alone", "memory", "step"},
        "text encoder": {"prompt alone", "image", "memory", "prompted"},
        "encoder": {"prompt alone", "image"},
        "decoder": {"prompt alone", "memory", "step", "observe", "look"},
        "depth": {"prompt alone", "image", "memory", "step", "observe"},
        "lift": {"prompt alone", "image", "memory", "step", "observe"},
        "recall": {"memory", "step", "observe"},
    }[part]
    monkeypatch.setattr(*place, full)
    for name in needs:
        with pytest.raises(MemoryError, match=rf"too little memory for {component}\. .*Tried to allocate 3.00 GiB.\)$"):
            acts[name]()
    for name in set(acts) - needs - ({"memory", "step", "observe"} if part == "encoder" else set()):
        acts[name]()
    if part == "encoder":
        for name, said in (("step", "encoding the last frame"), ("observe", "encoding observed frames")):
            with pytest.raises(MemoryError, match=f"too little memory for {said}"):
                acts[name]()


def test_guidance_with_equal_prompts_costs_one_look(world, monkeypatch):
    looks = []
    monkeypatch.setattr(world.model.transformer, "forward", counted(world.model.transformer.forward, looks))
    for prompt, each in (("", 1), ("red", 2)):  # the negative prompt is empty
        state, _ = world.start(Start(1, image=np.zeros((*SIZE, 3), dtype=np.uint8), prompt=prompt))
        looks.clear()
        world.step([state], FORWARD)
        assert len(looks) == each * world.denoising_steps


def counted(method, calls):
    def call(*args, **kwargs):
        calls.append(1)
        return method(*args, **kwargs)

    return call


def save_text_to_video(folder):
    """A pipeline as Wan 2.1's text-to-video models are: stride 8, no residual autoencoder, one timestep for all."""
    pipeline = tiny_pipeline()
    torch.manual_seed(4)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(CHANNELS)], latents_std=[1.0 + 0.1 * i for i in range(CHANNELS)],
    )  # fmt: skip
    parts = {name: getattr(pipeline, name) for name in ("tokenizer", "text_encoder", "transformer", "scheduler")}
    WanPipeline(vae=vae.eval(), **parts).save_pretrained(folder)
    return folder


def test_a_text_to_video_pipeline_is_a_world_too(kwargs, tmp_path):
    told = {**kwargs, "checkpoint": str(save_text_to_video(tmp_path))}
    with pytest.warns(UserWarning, match="one timestep for all tokens"):
        world = MosaicWorld.from_pretrained(**told, size=SIZE)
    codec, grid = world.model.codec, (CHANNELS, SIZE[0] // 8, SIZE[1] // 8)
    assert codec.stride == 8 and codec.vae.config.patch_size is None and codec.restarts
    states, views = zip(*(world.start(Start(seed, prompt="red")) for seed in (1, 2)), strict=True)
    for _ in range(2):
        before = states
        states, views = world.step(states, np.concatenate([FORWARD, TURN]))
    for was, state, view in zip(before, states, views, strict=True):
        assert state.history.shape == (1, *grid) and view.frames.shape == (FRAMES_PER_STEP, *SIZE, 3)
        assert len(state.memory) == 3 and view.coverage > 0.3 and np.isfinite(view.depth_m).all()
        # What was shown is what diffusers makes of the last frame's latent and of the new one.
        made = torch.stack([was.history[-1], state.memory.keyframes[-1].latent], dim=1)[None]
        with torch.no_grad():
            clip = codec.vae.decode(made * codec.deviation + codec.mean).sample[0, :, 1:].permute(1, 2, 3, 0)
        assert np.abs(((clip.numpy() + 1) * 127.5).round() - view.frames).max() <= 1
    assert not np.array_equal(views[0].frames, views[1].frames)


def test_a_state_is_kept_with_its_clip(world):
    state, _ = world.start(Start(2))
    (state,), _ = world.step([state], FORWARD)
    loaded = world.unpack(*world.pack(state))
    (_,), (one,) = world.step([state], TURN)
    (_,), (other,) = world.step([loaded], TURN)
    assert np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("causal", [False, True])
def test_networks_in_half_precision_leave_states_in_float32(kwargs, causal):
    loading = {**kwargs["loading"], "dtype": "bfloat16", "causal": causal}
    world = MosaicWorld.from_pretrained(**{**kwargs, "loading": loading}, size=SIZE)
    states, _ = zip(*(world.start(Start(seed)) for seed in range(2)), strict=True)
    for _ in range(2):
        states, views = world.step(states, np.concatenate([FORWARD, TURN]))
    for state in states:
        latents = [state.history, *(keyframe.latent for keyframe in state.memory.keyframes)]
        assert all(latent.dtype == torch.float32 for latent in latents)
    assert all(np.isfinite(view.depth_m).all() for view in views)


@pytest.mark.parametrize("causal", [False, True])
def test_the_default_dtype_of_the_process_changes_no_frame(kwargs, causal):
    loading = {**kwargs["loading"], "causal": causal}

    def walk(load_in, step_in):
        try:
            torch.set_default_dtype(load_in)
            world = MosaicWorld.from_pretrained(**{**kwargs, "loading": loading}, size=SIZE)
            torch.set_default_dtype(step_in)
            state, first = world.start(Start(1, prompt="red"))
            (state,), (second,) = world.step([state], FORWARD)
            (state,), (third,) = world.step([state], TURN)
        finally:
            torch.set_default_dtype(torch.float32)
        assert state.history.dtype == torch.float32
        return np.concatenate([first.frames.reshape(-1, *SIZE, 3), second.frames, third.frames])

    expected = walk(torch.float32, torch.float32)
    for load_in, step_in in ((torch.float64, torch.float64), (torch.float32, torch.float64), (torch.float16,) * 2):
        assert np.array_equal(walk(load_in, step_in), expected), (load_in, step_in)
