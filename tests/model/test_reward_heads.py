"""Outcome heads: what they draw depends on (seed, step) alone, as often as they believe, and ends an episode."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.training.reward_heads import rare_step_weights, sign_values
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model, tiny_outcome


def believing(sign: tuple[float, float, float], end: float) -> RewardTerminationHeads:
    heads = tiny_outcome()
    heads.tell.bias.data.copy_(torch.tensor([*sign, end]))
    return heads


def test_draws_follow_the_odds_and_repeat():
    heads = believing((0.0, -30.0, float(np.log(3.0))), float(np.log(0.25)))
    frames = torch.zeros(4000, 3, 16, 16)
    seeds, steps = range(4000), [5] * 4000
    rewards, ends = heads.draw(frames, seeds, steps, 1.0)
    assert np.mean(np.array(rewards) == 1.0) == pytest.approx(0.75, abs=0.03)
    assert np.mean(np.array(rewards) == -0.25) == pytest.approx(0.25, abs=0.03)
    assert np.mean(ends) == pytest.approx(0.2, abs=0.03)
    alone = heads.draw(frames[:1], [7], [5], 1.0)
    assert (alone[0][0], alone[1][0]) == (rewards[7], ends[7])
    assert heads.draw(frames[:50], seeds[:50], [6] * 50, 1.0)[0] != rewards[:50]


def test_no_temperature_takes_the_likelier():
    rewards, ends = believing((0.1, 0.0, 0.2), 0.01).draw(torch.zeros(3, 3, 16, 16), range(3), [0] * 3, 0)
    assert rewards == [1.0] * 3 and ends == [True] * 3


def test_a_dreamt_end_ends_the_episode_and_pays_the_engine_task():
    model = tiny_model()
    env = WorldEnv(MosaicWorld(model), task="simulator")
    env.reset(seed=0)
    assert [env.step(1)[1] for _ in range(3)] == [-0.25] * 3
    model.reward_heads = believing((-9.0, -9.0, 9.0), 30.0)
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["world_reward"]) == (1.0, True, 1.0)
    with pytest.raises(ResetNeeded):
        env.step(1)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature is a finite number from 0; got -1"):
        MosaicWorld(tiny_model(), temperature=-1)


def test_rare_steps_are_drawn_more_often_and_weigh_less():
    rewards = torch.full((1000,), -0.5)
    rewards[:4] = 2.0
    ends = torch.zeros(1000, dtype=torch.bool)
    ends[2:6] = True
    assert sign_values(rewards).tolist() == [-0.5, 0.0, 2.0]
    rare, weights = rare_step_weights(rewards, ends)
    assert rare.sum() == 6 and rare[:6].all()
    # Drawn a quarter of the time among the rare, three quarters among all: weights restore the true shares.
    odds = 0.75 / 1000 + torch.where(rare, 0.25 / 6, 0.0)
    torch.testing.assert_close(weights * odds, torch.full((1000,), 1 / 1000))


def test_a_low_temperature_raises_no_error_of_numpy():
    heads = believing((0.1, 0.0, 0.2), 0.01)
    with np.errstate(all="raise"):
        rewards, ends = heads.draw(torch.zeros(3, 3, 16, 16), range(3), [0] * 3, 1e-5)
    assert rewards == [1.0] * 3 and ends == [True] * 3
