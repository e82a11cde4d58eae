"""What every recipe shares: a budget in minutes or steps, a schedule, exact resume, and a log.

Everything random in a recipe is drawn from (seed, step), so a checkpoint needs no generator states, and
resuming continues exactly as if nothing had happened. Checkpoints are safetensors and JSON.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

if TYPE_CHECKING:
    from mosaic_gym.data.episodes import EpisodeStore


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in full float32 meanwhile: what a `Run` trains with would put patches centimetres off."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Budgeted(Protocol):
    """A recipe's config, as far as it says how long to train."""

    minutes: float | None
    steps: int | None


def budget_of(
    config: Budgeted, minutes: float | None = None, steps: int | None = None
) -> tuple[float | None, int | None]:
    """The minutes or the steps that a config gives; these, if it gives neither.

    Raises:
        ValueError: it gives both, or a budget of nothing.
    """
    if config.minutes is not None or config.steps is not None:
        minutes, steps = config.minutes, config.steps
    _check_budget(minutes, steps)
    return minutes, steps


def _check_budget(minutes: float | None, steps: int | None) -> None:
    if (minutes is None) == (steps is None):
        raise ValueError("give a run exactly one budget: --minutes or --steps")
    if minutes is not None and not 0.0 < minutes < math.inf:
        raise ValueError(f"--minutes is a number above 0; got {minutes}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps is at least 1; got {steps}")


PARTS = ("codec", "depth", "reward_heads", "atlas", "begin")
"""Fields of a recipe's config that name folders; what lies in those is told apart by itself."""
FREE = ("out", "data", "minutes", "steps", "workers", "compiled", "checkpoint_minutes", *PARTS)
"""Fields of a recipe's config in which a run may differ from the one that it goes on from."""
FREE_WITHIN = ("compile",)
"""The same of fields of a field, such as `loading`: compiling changes roundings."""


def recipe_of(config: Any, *recordings: EpisodeStore) -> dict[str, str]:
    """What a run is of, besides its budget: a recipe's choices, one by one, and what was recorded."""
    told: dict[str, str] = {}
    for each in fields(config):
        choice = getattr(config, each.name)
        if each.name in FREE:
            continue
        if not is_dataclass(choice):
            told[each.name] = str(choice)
            continue
        within = (inner.name for inner in fields(choice) if inner.name not in FREE_WITHIN)
        told |= {f"{each.name}.{name}": str(getattr(choice, name)) for name in within}
    return {**told, "data": " ".join(each.fingerprint for each in recordings)}


def checkpoint_in(folder: Path) -> Path | None:
    """Where the newest whole checkpoint of a run lies; None if it has none."""
    for place in (folder / "checkpoint.new", folder / "checkpoint"):  # the first was cut off before it got its name
        if (place / "run.json").exists():
            return place
    return None


def check_resumable(folder: Path, given: dict[str, Any], unknown: Collection[str] = ()) -> None:
    """Holds a run against the one that a folder holds, if any; nothing but its run.json is read.

    Args:
        given: `begin`, `parts` and `recipe` of the run that is to go on, as `Run` takes them. One that is left out, as
            before weights are loaded `parts` has to be, is not asked about.
        unknown: choices of the recipe that are not known yet, and are not asked about either.

    Raises:
        ValueError: the folder holds a run that began from other weights, was trained against other parts or is of
            another recipe.
    """
    kept = checkpoint_in(folder)
    if kept is None:
        return
    told = json.loads((kept / "run.json").read_text())
    if "begin" in given and told.get("begin") != given["begin"]:
        raise ValueError(
            f"{folder} holds a run that began from {told.get('begin') or 'nothing'}, not from "
            f"{given['begin'] or 'nothing'}; go on from the same, or choose another folder with --out"
        )
    if "parts" in given and told.get("parts") != given["parts"]:
        raise ValueError(
            f"{folder} holds a run that was trained against other weights (codec, depth estimator, heads and atlas, or "
            "a pretrained pipeline); go on with the same, or choose another folder with --out"
        )
    was, asked = told.get("recipe"), given.get("recipe")
    if was is None or asked is None:
        return
    differs = sorted(name for name in was.keys() | asked.keys() if was.get(name) != asked.get(name))
    found = [
        "of another recording" if name == "data" else f"with {name}={was.get(name)}, not {asked.get(name)}"
        for name in differs
        if name not in unknown
    ]
    if found:
        raise ValueError(
            f"{folder} holds a run {', '.join(found)}; ask for the same, or choose another folder with --out"
        )


def check_processes(accelerator: Accelerator, minutes: float | None, averaged: bool, shared: bool) -> None:
    """Raises ValueError for processes that cannot train together; the arguments are `Run`'s."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, and each would train alone, in the same folder: accelerate sees "
            f"{accelerator.num_processes} (torch sees {torch.cuda.device_count()} CUDA devices). Start one without "
            "accelerate launch, or try several on a CPU with ACCELERATE_USE_CPU=true"
        )
    if accelerator.num_processes > 1:
        if not shared:
            raise ValueError("this recipe trains in one process; start it without accelerate launch")
        if minutes is not None:
            raise ValueError("processes that train together read different clocks: give --steps, not --minutes")
    if accelerator.distributed_type == DistributedType.FSDP:
        if averaged or not shared:
            raise ValueError("this recipe does not share weights out; start it without accelerate's FSDP")
        if not accelerator.is_fsdp2:
            raise ValueError("this is FSDP's first version; ask for the second (mosaic_gym/training/fsdp.yaml)")


class Run:
    """One training run in a folder: `update()` until `finished`.

    Args:
        folder: where checkpoints, logs and the finished weights go; an unfinished run there is resumed.
        model: the network; an exponential moving average of it is what gets shipped.
        learning_rate: the peak; linear warm-up, then cosine to zero at the end of the budget.
        minutes: wall time of the whole run, earlier pieces included.
        steps: optimiser steps of the whole run. Give exactly one of the two.
        accelerator: device and precision.
        weight_decay, ema_decay, clip_norm: of AdamW, of the average, of the gradient.
        checkpoint_minutes: how often to write a checkpoint.
        averaged: whether an average is kept; a checkpoint without one holds only what is trained.
        begin: the finished weights that `model` was given, if any.
        parts: tells apart the finished weights that are trained against, and those that a pretrained model begins with
            (see `fingerprint_of`), if there are any.
        recipe: what the run is of, see `recipe_of`; None asks nothing of a run that is gone on from.
        shared: whether several processes may train together.

    Raises:
        ValueError: not exactly one of `minutes` and `steps`, the folder holds a run that began from other weights, was
            trained against other parts or is of another recipe, or processes that cannot train together.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        learning_rate: float,
        minutes: float | None,
        steps: int | None,
        accelerator: Accelerator,
        weight_decay: float = 0.01,
        ema_decay: float = 0.999,
        clip_norm: float = 1.0,
        checkpoint_minutes: float = 5.0,
        averaged: bool = True,
        begin: Path | None = None,
        parts: str | None = None,
        recipe: dict[str, str] | None = None,
        shared: bool = False,
    ):
        _check_budget(minutes, steps)
        check_processes(accelerator, minutes, averaged, shared)
        if accelerator.distributed_type == DistributedType.FSDP:
            # As on one device: autocast rounds products, and nothing else. Of timesteps bf16 keeps every fourth.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
        self.folder, self.minutes, self.steps = Path(folder), minutes, steps
        self.given = {"begin": None if begin is None else str(begin), "parts": parts, "recipe": recipe}
        self.folder.mkdir(parents=True, exist_ok=True)
        check_resumable(self.folder, self.given)
        self.learning_rate, self.ema_decay, self.clip_norm = learning_rate, ema_decay, clip_norm
        self.accelerator = accelerator
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 products, eight times as fast
        self.average = copy.deepcopy(model).requires_grad_(False).to(accelerator.device) if averaged else None
        optimizer = torch.optim.AdamW(
            # Kept nowhere else: whole weights would outlive their being shared out.
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99),
        )  # fmt: skip
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.step_index, self.earlier_s = 0, 0.0
        self.checkpoint_s = 60.0 * checkpoint_minutes
        accelerator.wait_for_everyone()  # until all have read what is to be moved
        newest = checkpoint_in(self.folder)
        # Whole, and cut off just before it took the old one's place.
        if accelerator.is_main_process and newest is not None and newest.name == "checkpoint.new":
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
            newest.rename(self.folder / "checkpoint")
        accelerator.wait_for_everyone()
        if checkpoint_in(self.folder) is not None:
            self._resume()
        self.start_clock()
        self.writer = None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder / "log")
        total = steps if steps is not None else round(60 * minutes)
        unit = "step" if steps is not None else "s"
        shown = {"unit": unit, "disable": not accelerator.is_main_process, "mininterval": 2.0}
        self.bar = tqdm(total=total, initial=self._spent(), **shown)
        if self.step_index and not self.finished:
            self.bar.write(f"{self.folder} holds a run of {self.step_index} steps: it goes on from there")
        if self.finished:
            self.bar.write(f"{self.folder} holds a run that is finished: nothing is trained. --out begins another")

    def start_clock(self) -> None:
        """Counts minutes from now on: what a recipe made ready since it opened the run is no training."""
        self.started = self.saved_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds spent training, earlier pieces included."""
        return self.earlier_s + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """How much of the budget is spent, 0 to 1."""
        if self.steps is not None:
            return min(1.0, self.step_index / self.steps)
        return min(1.0, self.elapsed_s / (60.0 * self.minutes))

    def _spent(self) -> int:
        """Of the budget, in steps or seconds."""
        return self.step_index if self.steps is not None else round(min(self.elapsed_s, 60 * self.minutes))

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    @property
    def seed(self) -> int:
        """Of everything random in the present step: the same after a resume, another in every process."""
        return self._seed_at(self.step_index)

    def seeds(self, first: int) -> Iterator[int]:
        """That of step `first`, and those of all the steps behind it."""
        return map(self._seed_at, itertools.count(first))

    def _seed_at(self, step_index: int) -> int:
        return 1_000_003 * (step_index + 1) + self.accelerator.process_index

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """The randomness of the present step; on an accelerator it is another than on the CPU."""
        return torch.Generator(device).manual_seed(self.seed)

    def update(self, loss: torch.Tensor, scalars: dict[str, float | torch.Tensor] | None = None) -> None:
        """One optimiser step on `loss`, the average, the log, and a checkpoint when it is time.

        Args:
            scalars: to be logged beside the loss, every tenth step; where `loss` is but the last part of the step's,
                whose other gradients are there already, the whole of it as `loss`. Tensors are read only then: an
                accelerator that is asked what it has found has to finish first.
        """
        warm_up = min(1.0, (self.step_index + 1) / 200)
        rate = self.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._update_average()
        self.step_index += 1
        self.bar.n = self._spent()
        if self.step_index % 10 == 0:
            told = {name: float(value) for name, value in {"loss": loss.detach(), **(scalars or {})}.items()}
            self.bar.set_postfix({"step": self.step_index, **told, "loss": f"{told['loss']:.4f}"})
            for name, value in {**told, "rate": rate}.items() if self.writer else ():
                self.writer.add_scalar(name, value, self.step_index)
        if self._is_due():
            self.checkpoint()

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint, the same in all processes, whose clocks differ.

        They ask one another every tenth step, for to ask is to wait.
        """
        due = time.monotonic() - self.saved_at > self.checkpoint_s
        if self.accelerator.num_processes == 1:
            return due
        if self.step_index % 10:
            return False
        if due:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step_index) / (10 + self.step_index))
        source = self.accelerator.unwrap_model(self.model)
        means = list(self.average.parameters())
        values = [value.to(mean.dtype) for mean, value in zip(means, source.parameters(), strict=True)]
        get_ema_multi_avg_fn(decay)(means, values, None)

    def trained(self) -> dict[str, torch.Tensor]:
        """Whole weights of what is trained, by name, on the CPU, as the last checkpoint has them."""
        return load_file(self.folder / "checkpoint" / "model.safetensors")

    def _gathered(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors, in the main process; of those that processes share out, all have to give their part."""
        whole = {}
        for name, value in tensors.items():
            # One by one, and away from the accelerator: together they may not fit one.
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.accelerator.is_main_process:
                whole[name] = (full.cpu() if isinstance(value, DTensor) else full).contiguous()
        return whole

    def checkpoint(self) -> None:
        """Writes everything a resume needs; the old checkpoint stays until the new one is whole.

        Every process has to call it; the main one writes.
        """
        self.saved_at = time.monotonic()
        source = self.accelerator.unwrap_model(self.model)
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        if self.average is None:
            networks = {"model": _trained(source)}
        else:
            networks = {"model": source.state_dict(), "average": self.average.state_dict()}
        fresh, kept = self.folder / "checkpoint.new", self.folder / "checkpoint"
        writes = self.accelerator.is_main_process
        if writes:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        for name, tensors in {**networks, "optimizer": moments}.items():
            whole = self._gathered(tensors)
            if writes:
                save_file(whole, fresh / f"{name}.safetensors")
        if not writes:
            return
        told = {"step": self.step_index, "elapsed_s": self.elapsed_s, **self.given}
        (fresh / "run.json").write_text(json.dumps(told))
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)

    def _resume(self) -> None:
        kept = self.folder / "checkpoint"
        told = json.loads((kept / "run.json").read_text())
        self.step_index, self.earlier_s = told["step"], told["elapsed_s"]
        source = self.accelerator.unwrap_model(self.model)
        weights = load_file(kept / "model.safetensors")
        trained = _trained(source) if self.average is None else source.state_dict()
        if {name: each.shape for name, each in weights.items()} != {n: each.shape for n, each in trained.items()}:
            raise ValueError(f"{kept} holds weights of other names or sizes; choose another folder with --out")
        if self.average is None:
            for name, parameter in trained.items():
                parameter.copy_(_shared_out(weights[name], parameter))
        else:
            source.load_state_dict(weights)
            self.average.load_state_dict(load_file(kept / "average.safetensors"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for name, value in load_file(kept / "optimizer.safetensors").items():
            index, moment = name.split(".", 1)
            like = parameters[int(index)]
            state.setdefault(int(index), {})[moment] = value if moment == "step" else _shared_out(value, like)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def close(self) -> None:
        """Last checkpoint, and the log is shut."""
        self.checkpoint()
        self.bar.close()
        if self.writer:
            self.writer.close()


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _shared_out(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that all have whole, if `like` is shared out; else all of it."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
