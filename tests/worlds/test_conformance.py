"""Every world passes the published test, and the test finds worlds that cheat."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mosaic_gym import make_world
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.envs.counting_world import CountingWorld
from tests.tiny import tiny_model
from tests.worlds.faces import EngineThroughFace, ThroughFace


def make_tiny() -> MosaicWorld:
    return MosaicWorld(tiny_model())


@pytest.mark.parametrize(
    "make",
    [CountingWorld, make_tiny, partial(make_world, "mosaic"), partial(make_world, "mosaic", memory=False),
     partial(make_world, "doom")],
    ids=["counting", "tiny", "doom-tiny", "doom-tiny-forgetful", "engine"],
)  # fmt: skip
def test_every_world_conforms(make):
    check_world(make)


@pytest.mark.parametrize("face", ["gymnasium", "sb3"])
@pytest.mark.parametrize(
    "make", [CountingWorld, make_tiny, partial(make_world, "mosaic")], ids=["counting", "tiny", "doom-tiny"]
)
def test_the_dream_conforms_through_both_vector_faces(make, face):
    check_world(partial(ThroughFace, make, face))


@pytest.mark.parametrize("face", ["gymnasium", "sb3"])
def test_the_engine_conforms_through_both_vector_faces(face):
    check_world(partial(EngineThroughFace, face))


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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Forgetful, "repeats"),
        (Gossip, "expected: 0.10% of a frame at most depends on the batch by more than 1 grey levels; found: 100.00%"),
        (Braggart, "raises RuntimeError"),
        (Hoarder, "share what is equal; found: .*latent was copied"),
        (Hasty, "expected: a fresh state has step_index 0; found: .1, 1."),
        (Bright, "expected: frames are uint8 .4, 40, 64, 3.; found: float32 .4, 40, 64, 3."),
        (Deep, "expected: depth is not negative, nor NaN; found: -1 m at the least"),
        (partial(ThroughFace, Forgetful, "gymnasium"), "repeats"),
        (partial(ThroughFace, Gossip, "sb3"), "depends on the batch"),
    ],
)
def test_cheats_are_found(make, said):
    with pytest.raises(AssertionError, match=said):
        check_world(make)


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
    assert "a fresh state has step_index 0" in done.stdout, done.stderr


def test_steps_out_of_range():
    with pytest.raises(ValueError, match="steps is 1 to 5"):
        check_world(CountingWorld, steps=9)
