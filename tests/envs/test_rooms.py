"""Generated maps behind the environment: seeds, splits, options, rewards and truth."""

import gymnasium as gym
import numpy as np
import pytest

import mosaic_gym  # noqa: F401, registers the ids
from mosaic_gym.envs.mosaic_env import make_simulator_env
from mosaic_gym.worlds.maps.rooms import MapOptions, draw_plan, map_seed

REAL = "MosaicWorldReal-v0"


@pytest.fixture(scope="module")
def env():
    env = make_simulator_env(scenario="rooms", split="heldout", task="simulator", observation="dict")
    yield env
    env.close()


def test_every_seed_plays_its_map_and_repeats_it(env):
    first, _ = env.reset(seed=np.int64(3))
    layout = env.world.layout()
    assert layout.seed == map_seed(3, "heldout") == 39
    other, _ = env.reset(seed=4)
    assert not np.array_equal(first["image"], other["image"])
    again, _ = env.reset(seed=3)
    assert np.array_equal(first["image"], again["image"]), "whatever was played between"
    rooms = draw_plan(39, "heldout").rooms
    assert [room.theme for room in env.world.layout().rooms] == [room.theme for room in rooms]


def test_a_map_is_chosen_by_an_option_or_by_the_scenario(env):
    env.reset(seed=0, options={"map_seed": 12_345})
    assert env.world.layout().seed == 12_345
    for wrong in (-1, 2.5, "3", True):
        with pytest.raises(ValueError, match="map_seed"):
            env.reset(options={"map_seed": wrong})
    assert env.world.layout().seed == 12_345, "the running episode continues"
    fixed = make_simulator_env(scenario="rooms:7", pickups=0, doors=False, monsters=0, lights=False)
    fixed.reset(seed=1), fixed.reset(seed=2)
    layout = fixed.world.layout()
    assert layout.seed == 7 and not layout.doors and {thing.kind for thing in layout.things} <= {"start", "prop"}
    fixed.close()


def test_a_pickup_gives_its_reward_once_and_is_gone(env):
    env.reset(seed=5)
    pickup = next(thing for thing in env.world.layout().things if thing.kind == "pickup")
    pose = np.eye(4)
    pose[:3, 3] = pickup.place_m[0] - 1.6, -41 / 32, pickup.place_m[1]
    pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # heading +x
    try:
        env.reset(seed=5, options={"pose": pose})
    except ValueError as error:
        pytest.skip(f"no body fits beside it: {error}")
    rewards = [env.step(1)[1] for _ in range(4)]
    assert sum(rewards) == 1.0
    gone = [thing for thing in env.world.layout().things if not thing.is_there]
    assert [tuple(thing.place_m) for thing in gone] == [tuple(pickup.place_m)]


def test_a_door_opens_when_the_body_walks_against_it_and_stays_open():
    env = make_simulator_env(scenario="rooms", pickups=0, monsters=0, lights=False)
    for seed in range(40):
        env.reset(seed=seed)
        doors = env.world.layout().doors
        wide = [door for door in doors if np.ptp(door.outline_m[:, 0]) < np.ptp(door.outline_m[:, 1])]
        if not wide:
            continue
        pose = np.eye(4)
        west, middle = wide[0].outline_m[:, 0].min(), wide[0].outline_m[:, 1].mean()
        pose[:3, 3] = west - 1.0, -41 / 32, middle
        pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
        try:
            env.reset(seed=seed, options={"pose": pose})
        except ValueError:
            continue  # the corridor is too short to stand in front of this door
        before = env.unwrapped.view.depth_m[32, 32]
        assert before == pytest.approx(1.0, abs=0.1), "the closed door, one metre ahead"
        for _ in range(12):
            env.step(1)
        now = [door.is_open for door in env.world.layout().doors]
        assert sum(now) == 1
        x_m = env.unwrapped.view.world_from_camera[-1][0, 3]
        assert x_m > west + 1.0, "the body walked through"
        for _ in range(20):
            env.step(0)
        assert [door.is_open for door in env.world.layout().doors] == now
        break
    else:
        pytest.fail("no door to stand in front of in 40 maps")
    env.close()


def test_a_light_goes_out_when_its_room_is_entered():
    env = make_simulator_env(scenario="rooms", pickups=0, monsters=0, doors=False)
    for seed in range(60):
        plan = draw_plan(map_seed(seed, "train"), options=MapOptions(pickups=0, monsters=0, doors=False))
        links = [(a, b) for a, b in plan.links if plan.rooms[b].dark is not None]
        if links:
            break
    env.reset(seed=seed)
    target = links[0][1]
    corridor = next(
        space for space in env.world.layout().spaces if space.kind == "corridor" and space.rooms == links[0]
    )
    low, high = corridor.outline_m.min(0), corridor.outline_m.max(0)
    room = env.world.layout().rooms[target].outline_m
    eastward = abs(high[0] - room[:, 0].min()) < 1e-6
    pose = np.eye(4)
    pose[:3, 3] = (
        (high[0] - 0.6, -41 / 32, (low[1] + high[1]) / 2)
        if eastward
        else ((low[0] + high[0]) / 2, -41 / 32, high[1] - 0.6)
    )
    if eastward:
        pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    try:
        env.reset(seed=seed, options={"pose": pose})
    except ValueError as error:
        pytest.skip(f"the corridor is too short: {error}")
    bright = env.unwrapped.view.frames[-1].mean()
    assert not env.world.layout().rooms[target].is_dark
    for _ in range(6):
        env.step(1)
    assert env.world.layout().rooms[target].is_dark
    assert env.unwrapped.view.frames[-1].mean() < 0.75 * bright
    env.close()


def test_depth_agrees_with_what_moved_frames_show(env):
    """A point lifted from one frame lands where the next frame's depth is the same, on nearly all pixels."""
    env.reset(seed=2)
    shares = []
    for action in (5, 5, 6, 1):
        before = env.unwrapped.view
        env.step(action)
        after = env.unwrapped.view
        shares.append(agreeing(before, after))
    assert np.mean(shares) > 0.97


def agreeing(before, after) -> float:
    k = before.image_from_camera
    rows, columns = np.indices(before.depth_m.shape) + 0.5
    rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones_like(rows)], -1)
    points = (rays * before.depth_m[..., None]).reshape(-1, 3)
    relative = np.linalg.inv(after.world_from_camera[-1]) @ before.world_from_camera[-1]
    moved = points @ relative[:3, :3].T + relative[:3, 3]
    u, v = moved[:, 0] / moved[:, 2] * k[0, 0] + k[0, 2], moved[:, 1] / moved[:, 2] * k[1, 1] + k[1, 2]
    inside = (moved[:, 2] > 0.1) & (u >= 0) & (u < 64) & (v >= 0) & (v < 64)
    there = after.depth_m[v[inside].astype(int), u[inside].astype(int)]
    # A point may be hidden by something nearer, and may not lie behind what is visible.
    return float(
        (moved[inside, 2] <= there * 1.08 + 0.1).mean() * 0.5
        + (np.abs(there / moved[inside, 2] - 1) < 0.08).mean() * 0.5
    )


def test_it_is_an_environment_through_gymnasium():
    env = gym.make(REAL, scenario="rooms", split="train")
    image, info = env.reset(seed=0)
    assert image.shape == (64, 64, 3) and info["pose"].shape == (4, 4)
    env.close()
    envs = gym.make_vec(REAL, num_envs=2, scenario="rooms")
    images, _ = envs.reset(seed=0)
    assert not np.array_equal(images[0], images[1])
    envs.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"scenario": "rooms", "split": "test"},
            "unknown split 'test'; the known ones are train, heldout, heldout-themes",
        ),
        ({"scenario": "rooms:x"}, "rooms:SEED with a whole number"),
        ({"scenario": "rooms", "pickups": -1}, "pickups is a whole number from 0 to 40; got -1"),
        ({"scenario": "my_way_home", "split": "train"}, "split and maps are for the scenario 'rooms'"),
        ({"scenario": "my_way_home", "monsters": 1}, "split and maps are for the scenario 'rooms'"),
    ],
)
def test_wrong_arguments_name_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_simulator_env(**kwargs)


def test_a_map_seed_is_refused_where_maps_are_not_generated():
    env = make_simulator_env()
    with pytest.raises(ValueError, match="does not support the option 'map_seed'"):
        env.reset(options={"map_seed": 3})
    with pytest.raises(RuntimeError, match="has no generated map"):
        env.reset(seed=0), env.world.layout()
    env.close()
