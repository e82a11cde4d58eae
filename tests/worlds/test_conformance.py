"""Every world passes the published test, and the test finds worlds that cheat."""

import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mosaic_gym import make_world
from mosaic_gym.worlds import conformance
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.envs.counting_world import CountingState, CountingWorld
from tests.tiny import tiny_model
from tests.worlds.faces import SimulatorThroughFace, ThroughFace


def make_tiny() -> MosaicWorld:
    return MosaicWorld(tiny_model())


@pytest.mark.parametrize(
    "make",
    [CountingWorld, make_tiny, partial(make_world, "mosaic"),
     pytest.param(partial(make_world, "mosaic", memory=False), marks=pytest.mark.slow), partial(make_world, "doom")],
    ids=["counting", "tiny", "doom-tiny", "doom-tiny-forgetful", "engine"],
)  # fmt: skip
def test_every_world_conforms(make):
    check_world(make)


@pytest.mark.parametrize("face", ["gymnasium", "sb3"])
@pytest.mark.parametrize(
    "make",
    [CountingWorld, make_tiny, pytest.param(partial(make_world, "mosaic"), marks=pytest.mark.slow)],
    ids=["counting", "tiny", "doom-tiny"],
)
def test_the_dream_conforms_through_both_vector_faces(make, face):
    check_world(partial(ThroughFace, make, face))


@pytest.mark.parametrize("face", ["gymnasium", "sb3"])
def test_the_engine_conforms_through_both_vector_faces(face):
    check_world(partial(SimulatorThroughFace, face))


class Forgetful(CountingWorld):
    """Its futures depend on how often it was asked."""

    asked = 0

    def step(self, states, actions):
        self.asked += 1
        after, views = super().step(states, actions)
        views[0].frames[:] += np.uint8(self.asked)
        return after, views


class Gossip(CountingWorld):
    """Members see how many they are."""

    def step(self, states, actions):
        after, views = super().step(states, actions)
        for view in views:
            view.frames[:] += np.uint8(5 * len(states))
        return after, views


class Braggart(CountingWorld):
    """Says it cannot go back, and goes."""

    def __init__(self):
        super().__init__()
        self.forkable = False


class Hoarder(MosaicWorld):
    """Copies all it remembers at every step."""

    def __init__(self):
        super().__init__(tiny_model())

    def step(self, states, actions):
        after, views = super().step(states, actions)
        copied = [tuple(replace(one, latent=one.latent.clone()) for one in state.memory.keyframes) for state in after]
        memories = [replace(state.memory, keyframes=each) for state, each in zip(after, copied, strict=True)]
        return [replace(state, memory=memory) for state, memory in zip(after, memories, strict=True)], views


class Hasty(CountingWorld):
    """Has made a step before it is asked to."""

    def start(self, start):
        state, view = super().start(start)
        return replace(state, step_index=1), view


class Bright(CountingWorld):
    """Shows frames as floats."""

    def start(self, start):
        state, view = super().start(start)
        return state, replace(view, frames=view.frames.astype(np.float32))


class Deep(CountingWorld):
    """Looks behind itself."""

    def start(self, start):
        state, view = super().start(start)
        return state, replace(view, depth_m=view.depth_m - 1)


class OneBuffer(CountingWorld):
    """Shows all its views in one and the same array of this name."""

    def __init__(self, name):
        super().__init__()
        self.name, self.buffer = name, None

    def _view(self, state, poses):
        view = super()._view(state, poses)
        if self.buffer is None:
            self.buffer = getattr(view, self.name).copy()
        self.buffer[:] = getattr(view, self.name)
        return replace(view, **{self.name: self.buffer})


class Meddler(CountingWorld):
    """Writes to the actions it is given."""

    def step(self, states, actions):
        done = super().step(states, actions)
        actions[:] = 0.0
        return done


class Whimsical(CountingWorld):
    """Says something else of a view, by this name, each time it is asked."""

    def __init__(self, name, *values):
        super().__init__()
        self.name, self.values, self.asked = name, values, 0

    def step(self, states, actions):
        self.asked += 1
        after, views = super().step(states, actions)
        return after, [replace(view, **{self.name: self.values[self.asked % 2]}) for view in views]


class Crowded(CountingWorld):
    """Shows something else, by this name, where members share a step, from some step on."""

    def __init__(self, name, change, since=0):
        super().__init__()
        self.name, self.change, self.since = name, change, since

    def step(self, states, actions):
        after, views = super().step(states, actions)
        if len(states) > 1 and states[0].step_index >= self.since:
            views = [replace(view, **{self.name: self.change(getattr(view, self.name))}) for view in views]
        return after, views


@dataclass(frozen=True)
class MappedState(CountingState):
    """A counting state with a map of 8,000 bytes."""

    map: np.ndarray


class Mapped(CountingWorld):
    """All its states share one NumPy map, which is packed as a copy of it."""

    def start(self, start):
        state, view = super().start(start)
        return MappedState(state.pose, state.step_index, state.start, np.arange(1000.0)), view

    def step(self, states, actions):
        after, views = super().step(states, actions)
        maps = [self.carried(state.map) for state in states]
        return [MappedState(a.pose, a.step_index, a.start, m) for a, m in zip(after, maps, strict=True)], views

    def carried(self, map):
        return map

    def pack(self, state):
        tensors, about = super().pack(state)
        return {**tensors, f"map{state.step_index}": torch.tensor(state.map)}, about

    def unpack(self, tensors, about):
        state = super().unpack(tensors, about)
        return MappedState(state.pose, state.step_index, state.start, tensors[f"map{state.step_index}"].numpy())


class Copyist(Mapped):
    """Copies the map at every step, and packs it under the step's name."""

    def carried(self, map):
        return map.copy()


class Packed(CountingWorld):
    """Packs something more: in tensors, or beside them, where it relies on its type."""

    def __init__(self, tensor=None, told=None):
        super().__init__()
        self.tensor, self.told = tensor, told

    def pack(self, state):
        tensors, about = super().pack(state)
        return tensors if self.tensor is None else {**tensors, "more": self.tensor}, {**about, "more": self.told}

    def unpack(self, tensors, about):
        if type(about["more"]) is not type(self.told):
            raise KeyError("more")
        return super().unpack(tensors, about)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Forgetful, "repeats"),
        (Gossip, "expected: at most 0.10% of a frame depends on the batch by more than 1 grey levels; found: by step"),
        (Braggart, "raises RuntimeError"),
        (Hoarder, "share what is equal; found: .*latent was copied"),
        (Hasty, "expected: a new state has step_index 0; found: .1, 1."),
        (Bright, "expected: frames are uint8 .4, 40, 64, 3.; found: float32 .4, 40, 64, 3."),
        (Deep, "expected: depth is not negative, nor NaN; found: -1 m at the least"),
        (partial(OneBuffer, "frames"), "later steps do not change a view, frames of step 1"),
        (partial(OneBuffer, "depth_m"), "later steps do not change a view, depth_m of step 1"),
        (partial(OneBuffer, "world_from_camera"), "later steps do not change a view, world_from_camera of step 1"),
        (Meddler, "a step does not change the actions passed to it"),
        (partial(Whimsical, "labels", ("a",), ("b",)), "repeats, .*, labels of step 1; found: .'b',. and .'a',."),
        (partial(Whimsical, "keyframes", 3, 4), "repeats, .*, keyframes of step 1"),
        (partial(Whimsical, "on_map", False, True), "repeats, .*, on_map of step 1"),
        (partial(Whimsical, "image_from_camera", np.eye(3), np.ones((3, 3))), "repeats, .*image_from_camera of step 1"),
        (partial(Crowded, "depth_m", lambda depth_m: depth_m * 1.02), "of the depths depends on the batch"),
        (partial(Crowded, "coverage", lambda share: share - 0.01), "coverage depends on the batch by at most 0.001"),
        (partial(Crowded, "reward", lambda paid: paid + 1.0), "found: by step 1, 1.4 in a batch, 0.4 alone"),
        (partial(Crowded, "terminated", lambda over: True), "terminated does not depend on the batch"),
        (partial(Crowded, "on_map", lambda known: True), "on_map does not depend on the batch"),
        (partial(Crowded, "keyframes", lambda count: count + 1), "keyframes does not depend on the batch"),
        (partial(Crowded, "labels", lambda seen: ()), "labels does not depend on the batch"),
        (partial(Crowded, "frames", lambda frames: frames + 2, since=5), "grey levels; found: by step 6, 100.00%"),
        (Copyist, "share what is equal; found: state.map was copied"),
        (partial(Packed, told=np.int64(3)), "JSON can hold the metadata of a packed state; found: .*int64"),
        (partial(Packed, told={1, 2}), "JSON can hold the metadata of a packed state; found: .*set"),
        (partial(Packed, told=(1, 2)), "unpack takes what a file returns .*; found: KeyError.'more'"),
        (partial(Packed, torch.zeros(4, 5).T), "packed tensors are contiguous, .*; found: more is not"),
        (partial(Packed, np.zeros(4)), "packed as torch tensors; found: more is .*ndarray"),
        (partial(ThroughFace, Forgetful, "gymnasium"), "repeats"),
        (partial(ThroughFace, Gossip, "sb3"), "depends on the batch"),
    ],
)
def test_cheats_are_found(make, said):
    with pytest.raises(AssertionError, match=said):
        check_world(make)


def test_a_state_may_be_packed_as_a_copy_of_what_states_share(monkeypatch):
    monkeypatch.setattr(conformance, "_check_packing", lambda *arguments: None)  # which needs another process
    check_world(Mapped)


def test_batches_may_differ_by_the_tolerances(monkeypatch):
    monkeypatch.setattr(conformance, "_check_packing", lambda *arguments: None)

    def speckled(frames):
        frames = frames + np.uint8(1)
        frames[0, 0, :10] += np.uint8(9)  # 30 of 30,720 numbers
        return frames

    check_world(partial(Crowded, "frames", speckled))
    check_world(partial(Crowded, "depth_m", lambda depth_m: depth_m * np.float32(1.009)))
    check_world(partial(Crowded, "reward", lambda paid: paid + 1.0), reward_tolerance=1.1)


def test_a_dreams_frames_do_not_depend_on_the_batch_for_thirty_steps(monkeypatch):
    monkeypatch.setattr(conformance, "_check_packing", lambda *arguments: None)
    check_world(make_tiny, batch_steps=30)


def test_a_cheat_is_found_where_asserts_are_stripped():
    program = (
        "from mosaic_gym.worlds.conformance import check_world\n"
        "from tests.envs.counting_world import CountingState, CountingWorld\n"
        "class Hasty(CountingWorld):\n"
        "    def start(self, start):\n"
        "        state, view = super().start(start)\n"
        "        return CountingState(state.pose, 1, start), view\n"
        "try:\n    check_world(Hasty)\nexcept AssertionError as error:\n    print(error)\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, cwd=root, check=False)
    assert "a new state has step_index 0" in done.stdout, done.stderr


def test_steps_out_of_range():
    with pytest.raises(ValueError, match="steps is 1 to 5"):
        check_world(CountingWorld, steps=9)
    with pytest.raises(ValueError, match="over 1 step or more; got 0"):
        check_world(CountingWorld, batch_steps=0)
