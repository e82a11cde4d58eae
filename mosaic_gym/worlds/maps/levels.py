"""The generated levels of one simulator: which map an episode plays, its WAD file, and what is known of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import vizdoom

from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.maps.layout import Layout, layout_after, layout_of
from mosaic_gym.worlds.maps.level import write_level
from mosaic_gym.worlds.maps.plan import Plan
from mosaic_gym.worlds.maps.raycast import OUTSIDE, Raycaster
from mosaic_gym.worlds.maps.rooms import SPLITS, MapOptions, draw_plan, map_seed

SCENARIO = "rooms"


class GeneratedLevels:
    """Levels for one simulator, drawn one episode after the other.

    Args:
        scenario: `rooms`, or `rooms:SEED` for one map in every episode.
        split: `train`, `heldout` or `heldout-themes`.
        options: which things maps have.

    Attributes:
        path: the WAD file whose level is replaced; deleted by `close`.
        plan: the present map; None before the first.
        raycaster: of the present map.

    Raises:
        ValueError: a seed that is no whole number from 0, or an unknown split; the message lists the known ones.
    """

    def __init__(self, scenario: str, split: str, options: MapOptions):
        name, _, seed = scenario.partition(":")
        if name != SCENARIO or (":" in scenario and not seed.isdecimal()):
            raise ValueError(f"generated maps are {SCENARIO}, or {SCENARIO}:SEED with a whole number; got {scenario!r}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the known ones are {', '.join(SPLITS)}")
        self.split, self.options = split, options
        self.fixed_seed = int(seed) if seed else None
        self._folder = Path(tempfile.mkdtemp(prefix="mosaic_gym_rooms_"))
        self.path = self._folder / "rooms.wad"
        self.plan: Plan | None = None
        write_level(self.path, draw_plan(0, split, options))

    def plan_for(self, episode_seed: int, seed: int | None) -> Plan:
        """The map of an episode: of a map seed, or else of the episode's seed in this split."""
        if seed is None:
            seed = map_seed(episode_seed, self.split) if self.fixed_seed is None else self.fixed_seed
        return draw_plan(check("map_seed", seed, Whole(0)), self.split, self.options)

    def load(self, plan: Plan) -> None:
        """Puts a map into the WAD file, for the simulator to load."""
        write_level(self.path, plan)
        self.plan, self.raycaster, self._first_layout = plan, Raycaster(plan), layout_of(plan)
        self._space, self._entered, self._items = plan.things[0].room, set(), 0.0

    def gather(self, state: vizdoom.GameState) -> float:
        """Takes note of one tic; the reward is 1 for each pickup that the body took."""
        x, y, *_, items = state.game_variables.tolist()
        before, self._space = self._space, self.raycaster.space_at(x, y)
        if self._space != before and self._space != OUTSIDE and self.plan.spaces[self._space].kind == "room":
            self._entered.add(self._space)
        reward, self._items = items - self._items, items
        return float(reward)

    def layout(self, state: vizdoom.GameState) -> Layout:
        """The present truth of the map, from a state with its sectors and objects."""
        objects = [(thing.name, thing.position_x, thing.position_y) for thing in state.objects]
        ceilings = [sector.ceiling_height for sector in state.sectors]
        return layout_after(self._first_layout, self.plan, ceilings, self._entered, objects)

    @property
    def description(self) -> str:
        """Differs between levels whose episodes differ."""
        options = self.options
        things = f"{options.pickups}-{options.doors:d}-{options.monsters}-{options.lights:d}"
        return f"{self.split}:{things}"

    def close(self) -> None:
        """Deletes the WAD file; safe to call twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
