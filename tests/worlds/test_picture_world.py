"""A world that generates color and depth together keeps the protocol, keeps what it showed, and lets go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.geometry.control import pose_at
from mosaic_gym.memory import editing
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds import picture_steps
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from tests.envs.counting_world import CountingWorld
from tests.tiny_pictures import SIZE, K, tiny_picture_model

STILL = np.zeros((1, 3))
AHEAD = np.array([[1.0, 0.0, 0.3]])


class FlatDepth:
    """An estimator that finds a wall at two metres in every frame."""

    metric = True

    def estimate(self, frames, image_from_camera):
        return torch.full((len(frames), *frames.shape[-2:]), 2.0)


def make() -> MosaicWorld:
    return MosaicWorld(tiny_picture_model())


def make_flat() -> MosaicWorld:
    return MosaicWorld(replace(tiny_picture_model(), depth=FlatDepth()))


@pytest.fixture
def generate_validity(monkeypatch):
    """Makes the network generate that memory is valid everywhere (1), or nowhere (-1)."""
    sample = picture_steps.sample_flow

    def set_validity(value: float) -> None:
        def sample_valid(*arguments, **options):
            sampled = sample(*arguments, **options)
            return torch.cat([sampled[:, :-1], torch.full_like(sampled[:, -1:], value)], 1)

        monkeypatch.setattr(picture_steps, "sample_flow", sample_valid)

    return set_validity


def test_it_keeps_the_world_protocol():
    check_world(make)


def test_a_body_at_rest_keeps_the_very_first_frame(generate_validity):
    world = make_flat()
    generate_validity(1.0)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    state, first = world.start(Start(seed=0, image=image))
    for _ in range(3):
        (state,), (view,) = world.step([state], STILL)
    # Colors are stored in half precision, which can move a grey level by one.
    assert np.abs(view.frames.astype(int) - first.frames).max() <= 1
    assert view.keyframes == 1, "nothing new was seen, so nothing was written"


def test_memory_is_written_once(generate_validity):
    world = make_flat()
    generate_validity(1.0)
    state, _ = world.start(Start(seed=0))
    (after,), (view,) = world.generate([state], [[pose_at(0.5, 0.0, 0.0, 0.0)] * 4])
    assert 0.0 < view.coverage < 1.0
    new = after.memory.keyframes[1:]
    assert sum(int(keyframe.written.sum()) for keyframe in new) <= (1.0 - view.coverage) * np.prod(SIZE) * 1.1 + 8


def test_what_is_seen_from_much_nearer_is_written_again(generate_validity):
    world = make_flat()
    generate_validity(1.0)
    state, _ = world.start(Start(seed=0))
    shares = []
    for z in (0.9, 1.1):  # metres towards a wall at two metres
        (near,), _ = world.generate([state], [[pose_at(0.0, 0.0, z, 0.0)] * 4])
        old, *new = near.memory.keyframes
        shares.append(float(new[0].written.float().mean()) if new else 0.0)
        assert bool(old.written.all()), "the far view stays"
    assert shares == [0.0, 1.0], "memory that is enlarged by two is too coarse"


def test_what_the_network_generates_as_outdated_replaces_memory(generate_validity):
    world = make_flat()
    generate_validity(-1.0)
    state, _ = world.start(Start(seed=0))
    (after,), _ = world.step([state], STILL)
    old, new = after.memory.keyframes
    assert not bool(old.written.any()) and bool(new.written.all())


def test_the_warp_alone_and_no_memory_are_worlds_too():
    model = tiny_picture_model()
    state, view = MosaicWorld(model, network=False).start(Start(seed=0))
    (_,), (next_view,) = MosaicWorld(model, network=False).step([state], AHEAD)
    assert next_view.frames.shape == (4, *SIZE, 3) and next_view.coverage > 0
    blind = MosaicWorld(model, capacity=0)
    state, view = blind.start(Start(seed=0))
    (state,), (view,) = blind.step([state], AHEAD)
    assert view.coverage == 0.0 and view.keyframes == 0 and view.frames.shape == (4, *SIZE, 3)


def test_seeds_and_prompts_change_what_is_invented():
    world = make()
    state, _ = world.start(Start(seed=0))
    frames = [world.step([s], AHEAD)[1][0].frames for s in (state, replace(state, seed=1))]
    assert not np.array_equal(*frames)
    other = world.with_prompt(state, "a cave")
    assert not np.array_equal(frames[0], world.step([other], AHEAD)[1][0].frames)


def test_a_saved_world_and_a_saved_memory_come_back(tmp_path, generate_validity):
    generate_validity(1.0)
    world = make()
    world.model.save_pretrained(tmp_path / "world")
    loaded = MosaicWorld(WorldModel.from_pretrained(tmp_path / "world"))
    assert loaded.fingerprint == world.fingerprint
    state, _ = world.start(Start(seed=0))
    (state,), _ = world.step([state], AHEAD)
    state.memory.save(tmp_path / "memory.safetensors")
    memory = type(state.memory).load(tmp_path / "memory.safetensors")
    again, view = loaded.start(Start(seed=1, memory=memory))
    assert view.coverage > 0.1 and again.step_index == 0
    assert all(keyframe.step < 100 for keyframe in again.memory.keyframes)


def test_observed_frames_enter_memory():
    world = make_flat()
    state, _ = world.start(Start(seed=0))
    frames = np.random.default_rng(1).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
    after = world.observe(state, frames, [pose_at(0.0, 0.0, 0.0, 0.0)] * 4)
    assert len(after.memory) == 2 and np.array_equal(world.current_frame(after), frames[-1])
    assert world.coverage_mask(after, [pose_at(0.0, 0.0, 0.0, 0.0)] * 4).all()


def test_a_world_without_start_images_generates_one_from_the_prompt():
    model = replace(tiny_picture_model(), start_images=torch.zeros(0, *SIZE, 3, dtype=torch.uint8), start_prompts=())
    _, one = MosaicWorld(model).start(Start(seed=0, prompt="a hall"))
    _, other = MosaicWorld(model).start(Start(seed=1, prompt="a hall"))
    assert one.frames.shape == (4, *SIZE, 3) and not np.array_equal(one.frames, other.frames)


def test_latent_steps_need_no_decoder_and_can_be_decoded_later():
    world = make()
    state, _ = world.start(Start(seed=0))
    (state,), (seen,) = world.step_latents([state], AHEAD)
    assert seen.latent.shape == (6, SIZE[0] // 4, SIZE[1] // 4) and 0 < seen.coverage <= 1
    (_,), (view,) = world.step([state], AHEAD)
    assert view.frames.shape == (4, *SIZE, 3)


def test_a_network_that_returns_nan_is_named():
    model = tiny_picture_model()
    torch.nn.init.constant_(model.transformer.proj_out.bias, float("nan"))
    world = MosaicWorld(model)
    state, _ = world.start(Start(seed=0))
    with pytest.raises(ValueError, match="NaN"):
        world.step([state], AHEAD)


def test_an_edit_is_shown_in_the_next_frame_whatever_the_network_finds(generate_validity):
    generate_validity(-1.0)
    env = WorldEnv(make_flat(), action_space="continuous")
    with pytest.raises(ResetNeeded):
        _ = env.memory
    column, row = np.meshgrid(np.linspace(40, 200, SIZE[1]), np.linspace(60, 180, SIZE[0]))
    env.reset(seed=0, options={"image": np.stack([column, row, column], -1).astype(np.uint8)})
    before = env.view.frames[-1].astype(float)
    middle = editing.select_on_screen(env.memory, (8, 16, 24, 32), env.view.world_from_camera[-1], K, SIZE)
    env.memory = editing.move(env.memory, middle, (0.0, 0.0, -0.6))
    env.step(np.zeros(3))
    error = np.abs(env.view.frames[-1].astype(float) - before).mean(-1)
    assert error[14:18, 22:26].mean() < 20 < error[:4].mean(), "nearer, so enlarged around the middle; else generated"
    box = editing.select_in_box(env.memory, (-1, -1, 1.3), (1, 1, 1.5))
    assert not len(env.world.obstacles([env.state])[0])
    env.memory = editing.move(env.memory, box, (0.0, 0.0, -0.8))
    obstacles = env.world.obstacles([env.state])[0]
    assert obstacles[:, 1].min() == pytest.approx(0.6, abs=0.1), "the body stops at what was moved"
    with pytest.raises(TypeError, match="MosaicMemory"):
        env.memory = "room.safetensors"
    with pytest.raises(RuntimeError, match="no memory"):
        simulator = WorldEnv(CountingWorld())
        simulator.reset(seed=0)
        _ = simulator.memory
