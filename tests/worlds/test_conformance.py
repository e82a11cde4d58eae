"""Every world passes the published test, and the test finds worlds that cheat."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mosaic_gym import make_world
from mosaic_gym.worlds.conformance import check_world
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.envs.counting_world import CountingWorld
from tests.tiny import tiny_model


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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Forgetful, "repeats"),
        (Gossip, "100.00% of a frame depends on the batch"),
        (Braggart, "raises RuntimeError"),
        (Hoarder, "share what is equal: .*latent was copied"),
    ],
)
def test_cheats_are_found(make, said):
    with pytest.raises(AssertionError, match=said):
        check_world(make)


def test_steps_out_of_range():
    with pytest.raises(ValueError, match="steps is 1 to 5"):
        check_world(CountingWorld, steps=9)
