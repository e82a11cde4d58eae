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


def floor_plan(plan: Plan) -> tuple:
    """A map without its looks: outlines and pillars of its spaces."""
    return tuple((space.kind, space.outline, space.pillars) for space in plan.spaces)


def test_a_map_is_its_seed_and_options(plans):
    draw_plan(7, options=MapOptions(pickups=3))
    assert [draw_plan(seed) for seed in (0, 5, 299)] == [plans[0], plans[5], plans[299]]
    assert draw_plan(5, options=MapOptions(pickups=0)) != plans[5]


def test_floor_plans_are_distinct_within_and_between_splits(plans):
    found = {floor_plan(plan) for plan in plans}
    assert len(found) >= 0.99 * len(plans)
    unseen = {floor_plan(draw_plan(seed, "heldout-themes")) for seed in SEEDS}
    assert not found & unseen
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
