"""What is played, without a window: timelines of one or two futures, the simulator, memory and its edits.

Every method that a key calls returns a line for the window, and raises ValueError, RuntimeError or OSError for what
cannot be done; the session is then unchanged.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.episode import step_episodes
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.snapshot import load_snapshots
from mosaic_gym.memory import editing
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.play.policies import Policy
from mosaic_gym.play.timeline import Moment, Timeline
from mosaic_gym.worlds.protocol import View

STEERING = ("first", "second", "both")
GUIDANCE_STEP = 0.5
REST = np.zeros(3, np.float32)
INVENTED = "no simulator has this place, it was invented; the same key again goes to the simulator's own start"


class Session:
    """Episodes of the learned world, and of the simulator on request.

    Args:
        env: over a learned world, with continuous actions.
        make_simulator: opens the simulator when it is first needed; None if there is none.
        make_policy: loads what steers when the player does not, when it is first needed; None if there is none.
        seed: of the first episode.
        compare: show the simulator too, with the same actions. Every episode then starts with its image and pose, so
            that both have the same places.

    Attributes:
        futures: the moments of each: one, or two after a fork.
        steering: which of them steps: `first`, `second` or `both`.
        in_simulator: whether the simulator is played instead.
        policy_steers: whether the policy acts.
        last_action: `[3]`, of the last step, the policy's if it steered.
        selection: the selected patches of the steered future's memory; None if nothing is selected.
    """

    def __init__(
        self,
        env: WorldEnv,
        make_simulator: Callable[[], WorldEnv] | None = None,
        make_policy: Callable[[], Policy] | None = None,
        seed: int = 0,
        compare: bool = False,
    ) -> None:
        self.env, self.seed, self._world = env, seed, env.world
        self._make_policy, self.policy = make_policy, None
        self._make_simulator, self.compare = make_simulator, compare
        self.simulator: WorldEnv | None = None
        self.policy_steers = self.in_simulator = self._same_places = self._warned = False
        self.steering, self.last_action = "first", REST
        self.selection: editing.Selection | None = None
        self.futures: list[Timeline] = []
        self.restart(seed)

    # What is shown

    @property
    def steered(self) -> list[Timeline]:
        """The futures that the next step advances."""
        futures, steering = self.futures, self.steering  # once each: a step may end the episode meanwhile
        chosen = [f for f, name in zip(futures, STEERING[:2], strict=False) if steering in (name, "both")]
        return chosen or futures[:1]

    @property
    def is_steered(self) -> list[bool]:
        """For each future, whether the next step advances it."""
        steered = self.steered
        return [future in steered for future in self.futures]

    @property
    def current(self) -> Timeline:
        """The future that commands are about: the first of the steered ones."""
        return self.steered[0]

    @property
    def views(self) -> list[View]:
        """The present view of every future, and of a simulator beside them; while that is played, its view alone."""
        if self.in_simulator:
            return [self.simulator.view]
        beside = [self.simulator.view] if self._beside is not None else []
        return [future.present.episode.view for future in self.futures] + beside

    @property
    def view_index(self) -> int:
        """The index in `views` of what commands, the mouse, the policy and recordings are about."""
        return 0 if self.in_simulator else self.futures.index(self.current)

    @property
    def view(self) -> View:
        """The present view of what commands are about."""
        return self.views[self.view_index]

    @property
    def _beside(self) -> WorldEnv | None:
        """The simulator beside the futures, while it is at the same places as they are."""
        return self.simulator if self.compare and self._same_places else None

    @property
    def memory_is_off(self) -> bool:
        return self.current.present.set_aside is not None

    @property
    def prompt(self) -> str:
        return getattr(self.current.present.episode.state, "prompt", "")

    @property
    def memory(self) -> MosaicMemory:
        """The memory of the present; RuntimeError in a world without one."""
        self.check_learned("has no memory to look at or to edit")
        memory = getattr(self.current.present.episode.state, "memory", None)
        if memory is None:
            raise RuntimeError(f"{type(self.env.world).__name__} has no memory")
        return memory

    def check_learned(self, what: str) -> None:
        """Raises RuntimeError if the simulator is played, which `what` says."""
        if self.in_simulator:
            raise RuntimeError(f"the simulator {what}; go back to the learned world first")

    # Time

    def restart(self, seed: int | None = None, image: np.ndarray | None = None, prompt: str | None = None) -> str:
        """A new episode of the learned world: of a seed (None for the next), or from an image uint8 `[H, W, 3]`."""
        seed = self.seed + 1 if seed is None else seed
        options: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
        same_places = image is None and self.compare
        if same_places:
            picture, info = self._open_simulator().reset(seed=seed)
            options |= {"image": picture, "pose": info["pose"]}
        elif image is not None:
            options["image"] = image
        self.env.reset(seed=seed, options=options or None)
        self.seed = seed
        self._begin(same_places)
        return f"episode {seed}" if image is None else "a new episode from the image"

    def _begin(self, same_places: bool) -> None:
        """Goes on from the environment's episode, in the learned world."""
        self.futures, self.steering, self.selection = [Timeline(Moment(self.env.episode, REST))], "first", None
        self.in_simulator, self._same_places = False, same_places

    def step(self, action: np.ndarray) -> list[View]:
        """One step of what is steered, all futures in one batch; returns the views, one for each that is shown."""
        start_s = time.perf_counter()
        if self.policy_steers:
            action = self.policy(self.view)
        self.last_action = np.asarray(action, np.float32)
        if self.in_simulator:
            if self.simulator.episode.ended:
                self.simulator.reset(seed=None)
            self.simulator.step(action)
            return self.views
        self.selection = None  # it is of the memory before the step
        beside = self._beside
        ended = [future.present.episode.ended for future in self.steered]
        if any(ended) or (beside is not None and beside.episode.ended):
            self.restart()
            return self.views
        episodes = [future.present.episode for future in self.steered]
        actions = np.repeat(np.asarray(action, np.float32)[None], len(episodes), axis=0)
        after = step_episodes(self.env.world, self.env.task, self.env.rules, episodes, actions)
        step_s = time.perf_counter() - start_s
        for future, episode in zip(self.steered, after, strict=True):
            present = future.present
            moment = Moment(episode, np.asarray(action, np.float32), step_s, present.edits, present.set_aside)
            future.append(moment)
        if beside is not None:
            beside.step(action)
        return self.views

    def move_in_time(self, steps: int) -> str:
        """Goes back (negative) or forward again in the steered futures."""
        self.check_learned("cannot go back in time, as it has one body and one present")
        self.selection = None
        moved = [future.move(steps) for future in self.steered]
        timeline = self.current
        if self._beside is not None:
            pose = timeline.present.episode.view.world_from_camera[-1]
            self._beside.reset(seed=self.seed, options={"pose": pose})
        if not any(moved):
            return "this is the start" if steps < 0 else "nothing was rewound"
        return f"step {timeline.present.episode.steps}, {timeline.ahead} ahead"

    def fork(self, prompt: str | None = None) -> str:
        """Two futures of the present, both steered if the second has another prompt; or ends a fork."""
        self.check_learned("cannot be forked")
        if len(self.futures) == 2:
            self.futures, self.steering = [self.current], "first"
            return "one future again"
        other = self.current.fork()
        if prompt is not None:
            other.replace_present(episode=self._with_prompt(other.present.episode, prompt))
        self.futures.append(other)
        self.steering = "second" if prompt is None else "both"
        return "two futures; tab chooses which one you steer" if prompt is None else f"two futures: {prompt!r}"

    def next_steering(self) -> str:
        """Steers the next of: the first future, the second, both."""
        if len(self.futures) == 1:
            raise ValueError("there is one future; fork it first")
        self.steering = STEERING[(STEERING.index(self.steering) + 1) % len(STEERING)]
        self.selection = None
        return f"you steer {'both futures' if self.steering == 'both' else 'the ' + self.steering + ' future'}"

    def save(self, path: Path) -> str:
        """Writes the present moment into a file that `load`, and `reset` of an environment, continue from.

        A changed scale of guidance is not part of it.
        """
        self.check_learned("cannot be saved")
        self._check_memory_is_on()
        self.env.episode = self.current.present.episode
        with self._own_guidance():
            self.env.save(path)
        return f"saved {path}"

    def load(self, path: Path) -> str:
        """Goes on from a saved moment."""
        with self._own_guidance():
            (snapshot,) = load_snapshots(self.env.world, path)
            self.env.restore(snapshot)
        self._begin(same_places=False)
        return f"loaded {path}"

    @contextmanager
    def _own_guidance(self) -> Iterator[None]:
        """The environment with the world's own guidance: files belong to that world."""
        world, self.env.world = self.env.world, self._world
        try:
            yield
        finally:
            self.env.world = world

    # Switches

    def switch_policy(self) -> str:
        """Lets the policy steer, or the player."""
        if self.policy is None:
            if self._make_policy is None:
                raise ValueError("there is no policy; give one with --policy")
            self.policy = self._make_policy()
        self.policy_steers = not self.policy_steers
        return "the policy steers" if self.policy_steers else "you steer"

    def switch_simulator(self) -> str:
        """Goes to the simulator at the same pose, or back to the learned world from the simulator's image."""
        if self._make_simulator is None:
            raise ValueError("this world has no simulator beside it")
        if self.in_simulator:
            view = self.simulator.view
            options = {"image": view.frames[-1], "pose": view.world_from_camera[-1]}
            self.env.reset(seed=self.seed, options=options)
            self._begin(same_places=True)
            return "the learned world goes on from the simulator's image"
        if not self._same_places and not self._warned:
            self._warned = True
            raise ValueError(INVENTED)
        simulator, self._warned = self._open_simulator(), False
        pose = self.current.present.episode.view.world_from_camera[-1]
        simulator.reset(seed=self.seed, options={"pose": pose} if self._same_places else None)
        self.in_simulator = True
        return "the simulator, at the same pose" if self._same_places else "the simulator, at its own start"

    def switch_memory(self) -> str:
        """Turns memory off, or on again as it was."""
        memory, set_aside = self.memory, self.current.present.set_aside
        if set_aside is None and memory.capacity == 0:
            raise ValueError("this world was opened without memory; leave --no-memory out")
        self.selection = None
        if set_aside is None:
            self._set_memory(MosaicMemory(capacity=0, made_with=memory.made_with), set_aside=memory)
            return "memory off"
        self._set_memory(set_aside, set_aside=None)
        return "memory on"

    def change_guidance(self, difference: float) -> str:
        """Another scale of classifier-free guidance, at least 1, for the steps from now on."""
        self.check_learned("takes no guidance")
        model = getattr(self.env.world, "model", None)
        if model is None:
            raise RuntimeError(f"{type(self.env.world).__name__} takes no guidance")
        guidance = max(1.0, model.settings.guidance + difference)
        world = copy.copy(self.env.world)  # the networks are shared
        world.__dict__.pop("_negative_text", None)  # which the other scale may need
        world.model = replace(model, settings=replace(model.settings, guidance=guidance))
        self.env.world = world
        return f"guidance {guidance:g}"

    def set_prompt(self, prompt: str) -> str:
        """Another prompt from now on."""
        self.check_learned("takes no prompt")
        timeline = self.current
        timeline.replace_present(episode=self._with_prompt(timeline.present.episode, prompt))
        return f"prompt {prompt!r}"

    # Memory

    def select(self, box: tuple[float, float, float, float]) -> str:
        """Selects what the present view shows in a rectangle (top, left, bottom, right), pixels of the frame."""
        memory, view = self.memory, self.current.present.episode.view
        size = view.frames.shape[1:3]
        selection = editing.select_on_screen(memory, box, view.world_from_camera[-1], view.image_from_camera, size)
        if not len(selection):
            self.selection = None
            raise ValueError("memory has no patches there")
        self.selection = selection
        return f"{len(selection)} patches selected"

    def edit(self, name: str) -> str:
        """Removes, duplicates, enlarges or turns the selected patches."""
        right_m = self.current.present.episode.view.world_from_camera[-1][:3, 0]
        changes: dict[str, Callable[[MosaicMemory, editing.Selection], MosaicMemory]] = {
            "remove": editing.remove,
            "duplicate": lambda memory, selection: editing.duplicate(memory, selection, 0.5 * right_m),
            "enlarge": lambda memory, selection: editing.scale(memory, selection, 1.25),
            "turn": lambda memory, selection: editing.rotate(memory, selection, np.pi / 6),
        }
        return self._edit(changes[name], {"remove": "removed", "duplicate": "duplicated", "enlarge": "enlarged",
                                          "turn": "turned"}[name])  # fmt: skip

    def drag(self, right_px: float, down_px: float) -> str:
        """Moves the selected patches across the view, by pixels of the frame at their depth."""
        view, memory = self.current.present.episode.view, self.memory
        world_from_camera, k = view.world_from_camera[-1], view.image_from_camera
        selection = self._selection()
        depth_m = float((editing.centre_m(memory, selection) - world_from_camera[:3, 3]) @ world_from_camera[:3, 2])
        by_m = world_from_camera[:3, :2] @ np.array([right_px / k[0, 0], down_px / k[1, 1]]) * max(depth_m, 0.0)
        return self._edit(lambda *chosen: editing.move(*chosen, by_m), f"moved by {np.linalg.norm(by_m):.2f} m")

    def transform(self, world_from_world: np.ndarray) -> str:
        """Moves and turns the selected patches by a transform `[4, 4]` of the world, metres."""
        return self._edit(lambda *chosen: editing.transform(*chosen, world_from_world), "moved")

    def undo(self) -> str:
        """Undoes the latest edit."""
        self._go_through_edits(editing.EditHistory.undo)
        return "undone"

    def redo(self) -> str:
        """Does again what was undone last."""
        self._go_through_edits(editing.EditHistory.redo)
        return "done again"

    def close(self) -> None:
        """Closes both environments."""
        self.env.close()
        if self.simulator is not None:
            self.simulator.close()

    def _edit(self, change: Callable[[MosaicMemory, editing.Selection], MosaicMemory], done: str) -> str:
        before, selection = self.memory, self._selection()
        after = change(before, selection)
        edits = self.current.present.edits.copy()
        edits.record(before, after)
        self._set_memory(after, edits=edits)
        self.selection = None
        return f"{len(selection)} patches {done}; the next step shows it"

    def _selection(self) -> editing.Selection:
        if self.selection is None:
            raise ValueError("nothing is selected: drag a rectangle over the view first")
        return self.selection

    def _go_through_edits(self, go: Callable[[editing.EditHistory, MosaicMemory], MosaicMemory]) -> None:
        memory = self.memory
        self._check_memory_is_on()
        edits = self.current.present.edits.copy()
        self._set_memory(go(edits, memory), edits=edits)
        self.selection = None

    def _check_memory_is_on(self) -> None:
        if self.memory_is_off:
            raise ValueError("memory is off; turn it on first")

    def _set_memory(self, memory: MosaicMemory, **changes: Any) -> None:
        """Gives the present moment another memory, and changes other fields of it."""
        timeline = self.current
        episode = timeline.present.episode
        timeline.replace_present(episode=replace(episode, state=replace(episode.state, memory=memory)), **changes)

    def _with_prompt(self, episode: Any, prompt: str) -> Any:
        if "prompt" not in self.env.options:
            raise RuntimeError(f"{type(self.env.world).__name__} takes no prompt")
        return replace(episode, state=self.env.world.with_prompt(episode.state, prompt))

    def _open_simulator(self) -> WorldEnv:
        if self.simulator is None:
            if self._make_simulator is None:
                raise ValueError("this world has no simulator beside it")
            self.simulator = self._make_simulator()
        return self.simulator
