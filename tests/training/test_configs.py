"""Configs of recipes refuse wrong values when they are made, in messages that name the option."""

from pathlib import Path

import numpy as np
import pytest

from mosaic_gym.cli import main
from mosaic_gym.training import codec, depth, reward_heads, world
from mosaic_gym.training.samples import MemoryAugmentation

RUNS = (depth, reward_heads, world)


@pytest.mark.parametrize("recipe", RUNS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch is a whole number from 1; got 0"),
        ({"batch": 2.5}, "--batch is a whole number from 1; got 2.5"),
        ({"steps": 0}, "--steps is a whole number from 1, or None; got 0"),
        ({"minutes": 0.0}, "--minutes is a finite number above 0, or None; got 0.0"),
        ({"minutes": float("nan")}, "--minutes is a finite number above 0, or None; got nan"),
        ({"minutes": 1.0, "steps": 5}, "give a run exactly one budget: --minutes or --steps"),
        ({"learning_rate": -1e-3}, "--learning-rate is a finite number from 0; got -0.001"),
        ({"out": __file__}, "--out is the path of a folder; got"),
        ({"data": 3}, "--data is the path of a folder; got 3"),
    ],
)
def test_every_recipe_refuses_what_it_cannot_train_with(recipe, options, message):
    with pytest.raises(ValueError) as refused:
        recipe.Config(**options)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (world, {"workers": -1}, "--workers is a whole number from 0; got -1"),
        (world, {"reuse": 0}, "--reuse is a whole number from 1; got 0"),
        (world, {"reuse": 2}, "--reuse 2 does not go with --rollout 0.2"),
        (world, {"rollout": 1.5}, "--rollout is a finite number from 0 to 1; got 1.5"),
        (world, {"noise_only": -0.1}, "--noise-only is a finite number from 0 to 1; got -0.1"),
        (world, {"empty_prompt": 2}, "--empty-prompt is a finite number from 0 to 1; got 2"),
        (world, {"episodes": 0}, "--episodes is a whole number from 1, or None; got 0"),
        (world, {"layers": 0}, "--layers is a whole number from 1; got 0"),
        (codec, {"stride": 0}, "--stride is a whole number from 1; got 0"),
        (codec, {"steps": 0}, "--steps is a whole number from 1; got 0"),
        (codec, {"seed": -1}, "--seed is a whole number from 0; got -1"),
        (depth, {"widths": (8, 12)}, "--widths are multiples of 8, at least one; got (8, 12)"),
        (reward_heads, {"widths": ()}, "--widths are multiples of 8, at least one; got ()"),
    ],
)
def test_a_recipe_refuses_what_it_alone_cannot_train_with(recipe, options, message):
    with pytest.raises(ValueError) as refused:
        recipe.Config(**options)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_place": 1.1}, "--augmentation.no-place is a finite number from 0 to 1; got 1.1"),
        ({"max_keyframes": 0}, "--augmentation.max-keyframes is a whole number from 1; got 0"),
        ({"place_noise_m": -1.0}, "--augmentation.place-noise-m is a finite number from 0; got -1"),
        ({"no_memory": 0.7, "last_only": 0.4}, "--augmentation.no-memory and --augmentation.last-only are shares"),
    ],
)
def test_an_augmentation_refuses_shares_that_are_none(options, message):
    with pytest.raises(ValueError) as refused:
        MemoryAugmentation(**options)
    assert str(refused.value).startswith(message)


def test_text_and_numpy_numbers_become_plain():
    config = world.Config(batch=np.int64(4), out="somewhere", learning_rate=np.float32(0.5))
    assert (type(config.batch), config.out, type(config.learning_rate)) == (int, Path("somewhere"), float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reuse", "0"], "--reuse is a whole number from 1; got 0"),
        (["--augmentation.no-recent", "2"], "--augmentation.no-recent is a finite number from 0 to 1; got 2"),
    ],
)
def test_the_command_line_says_the_same(options, message, capsys):
    try:
        code = main(["train", "world", *options])
    except SystemExit as left:  # tyro's own way
        code = left.code
    assert code in (1, 2) and message in " ".join(capsys.readouterr().err.replace("|", "").split())
