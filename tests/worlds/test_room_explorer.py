"""The explorer of generated maps: what it enters and sees, how it moves, and the captions of its walks."""

from dataclasses import replace

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.exploration import RETURNED_PIXELS, returned_share
from mosaic_gym.geometry.control import pose_at
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.maps.layout import layout_of
from mosaic_gym.worlds.maps.rooms import MapOptions, draw_plan
from mosaic_gym.worlds.maps.themes import THEMES
from mosaic_gym.worlds.maps.ways import BODY_SQUARES, FloorGrid, linked_rooms
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.room_captions import MAX_BYTES, MONSTERS, PICKUPS, PROPS, StepCaption, caption_steps
from mosaic_gym.worlds.room_explorer import RoomExplorer


@pytest.fixture(scope="module")
def world():
    world = DoomWorld("rooms", 64, 64, timeout_tics=0)
    yield world
    world.close()


def explore(world: DoomWorld, seed: int, steps: int = 80) -> RoomExplorer:
    state, view = world.start(Start(seed=seed))
    explorer = RoomExplorer(world, state, view, steps, np.random.default_rng(seed))
    explorer.explore()
    return explorer


def figures(explorer: RoomExplorer) -> dict[str, float]:
    """Share of the rooms entered, median depth, share of steps with returning places, and other facts of a walk."""
    views = explorer.views
    depth_m = np.stack([view.all_depth_m[-1] for view in views])
    cameras = np.stack([view.world_from_camera[-1] for view in views])
    layout = explorer.layouts[-1]
    rooms = {layout.room_at(*camera[[0, 2], 3]) for view in views for camera in view.world_from_camera} - {None}
    returned = returned_share(depth_m, cameras, views[0].image_from_camera)
    return {
        "rooms": len(rooms) / len(layout.rooms),
        "depth_m": float(np.median(depth_m)),
        "returned": float((returned >= RETURNED_PIXELS).mean()),
        "wall_ahead": float((np.median(depth_m[:, 30:34, 27:37], (1, 2)) < 1.5).mean()),
        "reward": sum(view.reward for view in views),
        "doors": sum(door.is_open for door in layout.doors),
    }


def check_targets(rows: list[dict[str, float]], slack: float = 0.0) -> None:
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    rooms, depth_m = (float(np.median([row[name] for row in rows])) for name in ("rooms", "depth_m"))
    print(f"{len(rows)} maps, medians: {rooms:.2f} of the rooms, {depth_m:.1f} m of depth; means: {mean}")
    assert rooms >= 0.6 - slack, mean
    assert depth_m >= 2.5, mean
    assert mean["returned"] >= 0.3 - slack, mean
    assert mean["wall_ahead"] < 0.15 and mean["reward"] > 1.0 and mean["doors"] > 0.5, mean


def test_walks_enter_most_rooms_look_far_and_come_back(world):
    explorers = [explore(world, seed) for seed in range(12)]
    assert all(len(explorer.views) == len(explorer.layouts) == 80 for explorer in explorers)
    check_targets([figures(explorer) for explorer in explorers], slack=0.1)
    actions = np.concatenate([explorer.actions[1:] for explorer in explorers])
    assert np.abs(actions).max() <= 1 and np.array_equal(actions, actions.astype(np.float32))
    for kind in (actions[:, 0] < -0.2, np.abs(actions[:, 1]) > 0.3, np.abs(actions[:, 2]) > 0.3, actions[:, 0] > 0.3):
        assert kind.mean() > 0.03, "backward, strafing, turning and ahead"
    turns = np.sign(actions[:, 2]) * (np.abs(actions[:, 2]) > 0.5)
    assert (turns[1:] * turns[:-1] < 0).mean() < 0.05, "no turning to and fro"


@pytest.mark.slow
def test_walks_in_a_hundred_maps_meet_the_targets(world):
    check_targets([figures(explore(world, seed)) for seed in range(100)])


def test_a_walk_is_its_seed(world):
    first, again = explore(world, 3, 20), explore(world, 3, 20)
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.views[-1].frames, again.views[-1].frames)


def test_ways_lead_everywhere_and_through_free_squares():
    for seed in range(20):
        layout = layout_of(draw_plan(seed))
        grid = FloorGrid(layout)
        start = tuple(layout.things[0].place_m.tolist())
        for room, linked in enumerate(linked_rooms(layout)):
            for other in linked:
                entry = grid.entry(room, other)
                assert grid.room_at(entry) == layout.room_at(*entry) == room
                way = grid.way(start, entry)
                assert way[-1] == entry and (len(way) > 1 or np.hypot(*np.subtract(entry, start)) < 1.5)
                assert all(grid.clearance_on(place, place) >= BODY_SQUARES for place in way)


def test_a_place_returns_only_after_it_was_away():
    """A camera turns away from a wall for some steps and back."""
    depth_m, k = np.full((32, 16, 16), 3.0), np.array([[12.0, 0, 8], [0, 12.0, 8], [0, 0, 1]])
    ahead, back = pose_at(0, 0, 0, 0.0).world_from_camera, pose_at(0, 0, 0, np.pi).world_from_camera
    away = returned_share(depth_m, np.stack([ahead] * 4 + [back] * 18 + [ahead] * 10), k)
    assert (away[22:] == 1).all() and not away[:22].any()
    brief = returned_share(depth_m, np.stack([ahead] * 14 + [back] * 7 + [ahead] * 11), k)
    assert not brief.any()
    assert not returned_share(depth_m, np.stack([ahead] * 32), k).any()


# Captions.

ARTICLES = {theme: "an" if theme == "ember" else "a" for theme in THEMES}


def test_captions_name_what_is_in_view_and_what_happens(world):
    steps = [step for seed in range(8) for step in caption_steps(*walk_of(explore(world, seed)))]
    texts, events = [step.text for step in steps], {event for step in steps for event in step.events}
    assert {"a bonus is taken", "the door opens", "the light goes out"} <= events
    assert any(event.endswith("appears") for event in events)
    assert max(len(text.encode()) for text in texts) <= MAX_BYTES
    for step in steps:
        assert step.theme in THEMES and step.text.split(", ")[0] in (
            f"{ARTICLES[step.theme]} {step.theme} {kind}" for kind in ("room", "corridor")
        )
        assert all(event in step.text for event in step.events)
    assert any("with a health bonus" in text for text in texts) and any("a closed door" in text for text in texts)


def walk_of(explorer: RoomExplorer) -> tuple:
    return explorer.views, explorer.layouts


def staged() -> tuple[View, object]:
    """A view along a room of a map with a wall at the end, and the layout."""
    layout = layout_of(draw_plan(3))
    x, z = layout.things[0].place_m
    pose = pose_at(float(x), -1.28, float(z), 0.0).world_from_camera
    depth_m = np.full((64, 64), 1.0, dtype=np.float32)
    k = np.array([[42.67, 0, 32], [0, 51.2, 32], [0, 0, 1]])
    view = View(
        np.zeros((4, 64, 64, 3), np.uint8), depth_m, np.stack([pose] * 4), k, all_depth_m=np.stack([depth_m] * 4)
    )
    return view, layout


def captions_after(view: View, layout, changed: View | None = None, changed_layout=None) -> StepCaption:
    return caption_steps([view, changed or view], [layout, changed_layout or layout])[1]


def test_a_monster_that_comes_into_view_appears_once():
    view, layout = staged()
    with_imp = replace(view, labels=("DoomImp",))
    assert captions_after(view, layout, with_imp).events == ("an imp appears",)
    assert captions_after(with_imp, layout, with_imp).events == ()
    assert captions_after(view, layout, with_imp).text.endswith(", with an imp; an imp appears")


def test_a_taken_bonus_and_a_light_that_goes_out_are_named():
    view, layout = staged()
    things = tuple(replace(thing, is_there=thing.kind != "pickup") for thing in layout.things)
    assert captions_after(view, layout, changed_layout=replace(layout, things=things)).events == ("a bonus is taken",)
    here = layout.room_at(*view.world_from_camera[-1][[0, 2], 3])
    for room in range(len(layout.rooms)):
        spaces = tuple(
            replace(space, is_dark=True, light=48) if index == room else space
            for index, space in enumerate(layout.spaces)
        )
        step = captions_after(view, layout, changed_layout=replace(layout, spaces=spaces))
        assert step.events == (("the light goes out",) if room == here else ()), "only in the room in view"
        assert (", dark" in step.text) == (room == here)


def test_a_door_that_opens_out_of_view_is_not_named():
    view, layout = staged()
    doors = tuple(replace(door, is_open=True) for door in layout.doors)
    assert layout.doors
    assert captions_after(view, layout, changed_layout=replace(layout, doors=doors)).events == (), "a wall is in front"


def test_the_longest_caption_fits():
    view, layout = staged()
    crowd = replace(view, labels=tuple(sorted((*MONSTERS, *PICKUPS, *PROPS))))
    things = tuple(replace(thing, is_there=thing.kind != "pickup") for thing in layout.things)
    step = captions_after(view, layout, crowd, replace(layout, things=things))
    assert len(step.text.encode()) <= MAX_BYTES
    assert all(event in step.text for event in step.events) and len(step.events) == 4


def test_a_text_encoder_takes_every_caption():
    from mosaic_gym.model.text import ByteTextEncoder

    assert ByteTextEncoder().config.length >= MAX_BYTES


@pytest.mark.parametrize("split", ["train", "heldout-themes"])
def test_all_things_of_maps_have_words(split):
    world = DoomWorld("rooms", 64, 64, timeout_tics=0, split=split, maps=MapOptions(pickups=20, monsters=8))
    names = {label for seed in range(3) for view in explore(world, seed, 40).views for label in view.labels}
    world.close()
    assert names <= set(MONSTERS) | set(PICKUPS) | set(PROPS)
