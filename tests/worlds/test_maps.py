"""Generated maps: what the generator promises of every seed."""

from collections import deque

import numpy as np
import pytest

from mosaic_gym.worlds.maps.level import TEXT_BYTES, level_text, write_level
from mosaic_gym.worlds.maps.plan import Plan, bounds_of, edges_of, is_free, is_inside
from mosaic_gym.worlds.maps.raycast import Raycaster
from mosaic_gym.worlds.maps.rooms import LEAST_ROOMS, SPLITS, MapOptions, draw_plan, map_seed
from mosaic_gym.worlds.maps.themes import HELDOUT_THEMES, THEMES

SEEDS = range(300)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [draw_plan(seed) for seed in SEEDS]


def floor_plan(plan: Plan) -> frozenset:
    """The outlines and pillars of a map's rooms, wherever the map lies: without looks, corridors, doors and niches."""
    west, south = (min(point[axis] for room in plan.rooms for point in room.outline) for axis in (0, 1))

    def moved(ring: tuple) -> tuple:
        return tuple((x - west, y - south) for x, y in ring)

    return frozenset((moved(room.outline), frozenset(map(moved, room.pillars))) for room in plan.rooms)


def test_a_map_is_its_seed_and_options(plans):
    draw_plan(7, options=MapOptions(pickups=3))
    assert [draw_plan(seed) for seed in (0, 5, 299)] == [plans[0], plans[5], plans[299]]
    assert draw_plan(5, options=MapOptions(pickups=0)) != plans[5]


def floor_plans(split: str, count: int) -> set[int]:
    """Hashes of the floor plans of a split's first maps."""
    bare = MapOptions(pickups=0, monsters=0)  # things do not change a floor plan
    return {hash(floor_plan(draw_plan(map_seed(seed, split), split, bare))) for seed in range(count)}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_floor_plans_are_distinct_within_and_between_splits(count):
    found = {split: floor_plans(split, count) for split in SPLITS}
    shares = {split: len(plans) / count for split, plans in found.items()}
    print("share of distinct floor plans:", shares)
    assert min(shares.values()) >= 0.99, shares
    assert len(set.union(*found.values())) == sum(map(len, found.values())), "a floor plan stands in two splits"


def test_splits_share_no_map_seed():
    train = {map_seed(seed, "train") for seed in range(1000)}
    heldout = {map_seed(seed, "heldout") for seed in range(1000)}
    assert len(train) == len(heldout) == 1000 and not train & heldout
    assert all(seed % 10 != 9 for seed in train) and all(seed % 10 == 9 for seed in heldout)


def test_themes_are_held_out(plans):
    assert not {room.theme for plan in plans for room in plan.rooms} & set(HELDOUT_THEMES)
    unseen = {room.theme for seed in range(30) for room in draw_plan(seed, "heldout-themes").rooms}
    assert unseen == set(HELDOUT_THEMES)
    assert {room.theme for plan in plans for room in plan.rooms} == set(THEMES) - set(HELDOUT_THEMES)


def test_maps_have_rooms_loops_pillars_niches_doors_and_dark_rooms(plans):
    assert min(len(plan.rooms) for plan in plans) >= LEAST_ROOMS
    assert np.mean([len(plan.links) >= len(plan.rooms) for plan in plans]) > 0.4, "loops"
    for kind in ("corridor", "niche", "door"):
        assert np.mean([any(space.kind == kind for space in plan.spaces) for plan in plans]) > 0.5, kind
    assert np.mean([any(room.pillars for room in plan.rooms) for plan in plans]) > 0.5
    assert np.mean([any(len(room.outline) == 6 for room in plan.rooms) for plan in plans]) > 0.5
    assert np.mean([any(room.dark is not None for room in plan.rooms) for plan in plans]) > 0.5
    bare = draw_plan(3, options=MapOptions(pickups=0, doors=False, monsters=0, lights=False))
    assert {space.kind for space in bare.spaces} <= {"room", "corridor", "niche"}
    assert {thing.kind for thing in bare.things} <= {"start", "prop"}
    assert all(room.dark is None for room in bare.rooms)


def test_spaces_do_not_overlap_and_outlines_are_clockwise(plans):
    for plan in plans[:60]:
        for space in plan.spaces:
            assert area(space.outline) > 0, (plan.seed, space)
            assert all(area(pillar) < 0 for pillar in space.pillars)
        boxes = [bounds_of(space.outline) for space in plan.spaces]
        for i, (west, south, east, north) in enumerate(boxes):
            for other in boxes[i + 1 :]:
                apart = other[0] >= east or other[2] <= west or other[1] >= north or other[3] <= south
                assert apart, (plan.seed, i)


def area(outline) -> float:
    """Positive for a clockwise outline."""
    pairs = zip(outline, (*outline[1:], outline[0]), strict=True)
    return sum((x2 - x1) * (y2 + y1) for (x1, y1), (x2, y2) in pairs) / 2


def test_every_room_and_thing_can_be_reached(plans):
    """A body of 32 units is moved over free squares of a grid; a closed door counts as open, because it opens."""
    for plan in plans[:25]:
        reached = reachable(plan)
        for thing in plan.things:
            if thing.kind in ("pickup", "monster"):
                assert any((thing.x + dx, thing.y + dy) in reached for dx in range(-8, 9) for dy in range(-8, 9)), (
                    plan.seed
                )
        for room in plan.rooms:
            assert any(is_inside(room.outline, *point) for point in reached), plan.seed


def reachable(plan: Plan) -> set[tuple[int, int]]:
    step = 8
    props = [thing for thing in plan.things if thing.kind == "prop"]
    walls = np.array([(*edge.a, *edge.b) for edge in edges_of(plan) if edge.back is None], dtype=float)
    low, high = np.minimum(walls[:, :2], walls[:, 2:]), np.maximum(walls[:, :2], walls[:, 2:])
    start = plan.things[0].x, plan.things[0].y

    def is_clear(x: int, y: int) -> bool:
        inside = (low[:, 0] < x + 16) & (high[:, 0] > x - 16) & (low[:, 1] < y + 16) & (high[:, 1] > y - 16)
        return not inside.any() and all(max(abs(prop.x - x), abs(prop.y - y)) >= 32 for prop in props)

    reached, front = {start}, deque([start])
    while front:
        x, y = front.popleft()
        for point in ((x + step, y), (x - step, y), (x, y + step), (x, y - step)):
            if point not in reached and is_clear(*point):
                reached.add(point)
                front.append(point)
    return reached


def test_levels_fit_their_slot_and_are_replaced_in_place(plans, tmp_path):
    assert max(len(level_text(plan)) for plan in plans[:100]) < TEXT_BYTES / 2
    path = tmp_path / "level.wad"
    write_level(path, plans[0])
    first, size = path.read_bytes(), path.stat().st_size
    write_level(path, plans[1])
    assert path.stat().st_size == size and path.read_bytes() != first
    write_level(path, plans[0])
    assert path.read_bytes() == first


def test_depth_of_a_room_is_what_geometry_says():
    plan = draw_plan(1, options=MapOptions(doors=False))
    room = plan.rooms[0]
    west, south, east, north = bounds_of(room.outline)
    free = [(x, y) for x in range(west + 40, east - 40, 8) for y in range(south + 40, north - 40, 8)]
    x, y = next(point for point in free if is_free(room, *point, 40))
    caster, ceilings = Raycaster(plan), np.array([space.ceiling for space in plan.spaces])
    down = caster.depth(x, y, 41.0, 0.3, np.zeros(1), np.array([2.0]), ceilings)
    assert down[0, 0] == pytest.approx(20.5), "the floor, 41 below the eye, along a ray that falls by 2"
    up = caster.depth(x, y, 41.0, 0.3, np.zeros(1), np.array([-4.0]), ceilings)
    assert up[0, 0] == pytest.approx((room.ceiling - 41) / 4.0)
    assert caster.space_at(x, y) == 0 and caster.space_at(-500, -500) == -1
    around = [
        caster.depth(x, y, 41.0, yaw, np.linspace(-1, 1, 9), np.linspace(-0.6, 0.6, 9), ceilings) for yaw in (0, 2, 4)
    ]
    assert all(np.isfinite(depth).all() and (depth > 0).all() for depth in around), "no ray leaves the map"


def test_depth_is_that_of_single_rays_followed_from_space_to_space(plans):
    """Beside a slow, obvious ray caster: several cameras at once, with doors closed, open, and on their way up."""
    rng = np.random.default_rng(0)
    slopes, falls = np.linspace(-0.7, 0.7, 13), np.array([-0.9, -0.3, -0.05, 0.0, 0.05, 0.3, 0.9])
    for plan in plans[:12]:
        moving = rng.choice([0, 20, 50, 96], len(plan.spaces))
        ceilings = np.array([space.ceiling or height for space, height in zip(plan.spaces, moving, strict=True)])
        rooms = [plan.rooms[index] for index in rng.integers(len(plan.rooms), size=3)]
        places = np.array([free_point(rng, room) for room in rooms])
        yaws = rng.uniform(-np.pi, np.pi, 3)
        depth = Raycaster(plan).depth(*places.T, np.full(3, 41.0), yaws, slopes, falls, np.stack([ceilings] * 3))
        for (x, y), yaw, found in zip(places, yaws, depth, strict=True):
            true = [[follow_ray(plan, ceilings, x, y, yaw, slope, fall) for slope in slopes] for fall in falls]
            np.testing.assert_allclose(found, true, rtol=1e-9)


def free_point(rng: np.random.Generator, room) -> tuple[float, float]:
    west, south, east, north = bounds_of(room.outline)
    while True:
        x, y = rng.uniform(west + 8, east - 8), rng.uniform(south + 8, north - 8)
        if is_free(room, x, y, 4):
            return x, y


def follow_ray(plan: Plan, ceilings: np.ndarray, x: float, y: float, yaw: float, slope: float, fall: float) -> float:
    """Depth along one ray from an eye at height 41, map units."""
    across, along = np.sin(yaw) + slope * np.cos(yaw), np.cos(yaw) - slope * np.sin(yaw)
    space = next(i for i, part in enumerate(plan.spaces) if is_inside(part.outline, x, y))
    before = 0.0
    while True:
        distance, behind = np.inf, None
        for edge in edges_of(plan):
            if space in (edge.front, edge.back):
                upright = edge.a[0] == edge.b[0]
                run, offset = (across, edge.a[0] - x) if upright else (along, edge.a[1] - y)
                if run == 0 or not before < offset / run < distance:
                    continue
                where = y + offset / run * along if upright else x + offset / run * across
                low, high = sorted((edge.a[1], edge.b[1]) if upright else (edge.a[0], edge.b[0]))
                if low <= where <= high:
                    distance, behind = offset / run, edge.back if edge.front == space else edge.front
        flat = 41 / fall if fall > 0 else (ceilings[space] - 41) / -fall if fall < 0 else np.inf
        if flat <= distance or behind is None or 41 - fall * distance > ceilings[behind]:
            return min(flat, distance)
        space, before = behind, distance


@pytest.mark.parametrize(
    "options", [{"pickups": -1}, {"pickups": 2.5}, {"doors": "yes"}, {"monsters": 99}, {"lights": None}]
)
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        MapOptions(**options)


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown split 'test'; the known ones are {', '.join(SPLITS)}"):
        draw_plan(0, "test")
