"""Options of the transfer benchmark, and the layout of its results folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mosaic_gym.validation import Whole, option, validate

FIRST_TEST_SEED = 2_000_009
"""First seed of the simulator's test episodes. Seeds end in 9, so they are held out from the recording."""
RECIPE = ("data", "steps", "simulator_steps", "policies", "places", "goals", "rollout", "seed")
"""Options that determine the trained policies. A results folder holds results of one choice of these."""
RULES = 2
"""Version of the learned world's body motion. Results of different versions do not go together."""
EARLIER_WORDS = {"learned": "dream", "simulator": "engine", "idle": "dozing"}  # name in files
"""Words in the names of results files as earlier versions wrote them, by the present words."""
EARLIER_OPTIONS = {"engine_steps": "simulator_steps", "scenes": "goals"}  # name in files
"""Present names of options by the names in files of earlier versions."""


@dataclass(frozen=True)
class Config:
    """Measure how policies that were trained in the learned world perform in the simulator."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes; the learned world's episodes start at their places."""
    out: Path = Path("out/transfer")
    """Folder for policies and results. Results that are already there are used."""
    runs: Annotated[int, Whole(1)] = 2
    """Runs of PPO in the learned world, with consecutive seeds: runs differ by more than the noise of episodes. (There
    is one run in the simulator.)"""
    steps: Annotated[int, Whole(1)] = 60_000
    """Steps of PPO in the learned world, for each run."""
    simulator_steps: Annotated[int | None, Whole(0)] = None
    """Steps of PPO in the simulator; None for as many as the recording has, 0 to leave it out."""
    episodes: Annotated[int, Whole(2)] = 200
    """Simulator episodes for each variant."""
    rank_episodes: Annotated[int, Whole(0)] = 96
    """Episodes for each policy that is ranked, in the learned world and in the simulator: at least 2; 0 to leave the
    ranking out."""
    plan_episodes: Annotated[int, Whole(0)] = 30
    """Simulator episodes of the return task for the planner with memory, without frames, and without frames and places:
    at least 2, some 35 seconds each on one core; 0 to leave it out."""
    policies: Annotated[int, Whole(2)] = 8
    """Checkpoints during training, from the first policy to the last, which is the one tested. Interrupted training
    continues from the last checkpoint."""
    places: Annotated[int, Whole(1)] = 96
    """Recorded episodes at whose places the learned world's episodes start."""
    goals: Annotated[int, Whole(1)] = 320
    """Pairs of start and goal that are sampled in the learned world before training; its episodes draw from them."""
    rollout: Annotated[int, Whole(1)] = 32
    """Steps of every member between PPO's updates."""
    seed: Annotated[int, Whole(0)] = 0
    """Seed of PPO's first run, of starts and goals, and of the random policy. (The planner uses each episode's own
    seed.)"""

    def __post_init__(self) -> None:
        validate(self, option)
        for name in ("rank_episodes", "plan_episodes"):
            if getattr(self, name) == 1:
                raise ValueError(f"{option(name)} is at least 2 for an interval, or 0 to leave them out; got 1")


def results_path(config: Config, name: str) -> Path:
    """A file or folder of results, by its present name, or by its earlier name if it exists under that one."""
    earlier = name
    for word, earlier_word in EARLIER_WORDS.items():
        earlier = earlier.replace(word, earlier_word)
    path = config.out / earlier
    return path if path.exists() else config.out / name


def run_names(variant: str, config: Config) -> list[str]:
    """Names of a variant's runs: one for each run of training in the learned world; of others, the variant's name."""
    return [f"{variant}_{run}" for run in range(config.runs)] if variant == "learned" else [variant]


def final_policy(config: Config, run: str) -> Path:
    """The file of the policy at the end of a run of PPO."""
    return results_path(config, run) / f"{config.policies - 1}.safetensors"
