"""The training run that every recipe shares: schedule, optimizer step, moving average, exact resume and log.

Everything random in a recipe is drawn from (seed, step). A checkpoint therefore needs no generator states, and a
resumed run continues bit for bit like one that was never interrupted.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from mosaic_gym.training.budget import check_budget
from mosaic_gym.training.checkpoint import (
    Tensors,
    check_resumable,
    checkpoint_in,
    finish_rename,
    read_metadata,
    read_tensors,
    shard_like,
    write_checkpoint,
)

WARM_UP_STEPS = 200
"""Optimizer steps over which the learning rate rises linearly."""
LOG_EVERY = 10
"""Optimizer steps between two entries of the log."""


def check_processes(accelerator: Accelerator, minutes: float | None, averaged: bool, shared: bool) -> None:
    """Raises ValueError for processes that cannot train together; the arguments are `Run`'s."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, and each would train alone, in the same folder: accelerate finds "
            f"{accelerator.num_processes} (torch finds {torch.cuda.device_count()} CUDA devices). Start one without "
            "accelerate launch, or try several on a CPU with ACCELERATE_USE_CPU=true"
        )
    if accelerator.num_processes > 1:
        if not shared:
            raise ValueError("this recipe trains in one process; start it without accelerate launch")
        if minutes is not None:
            raise ValueError("processes that train together read different clocks: give --steps, not --minutes")
    if accelerator.distributed_type == DistributedType.FSDP:
        if averaged or not shared:
            raise ValueError("this recipe does not shard its weights; start it without accelerate's FSDP")
        if not accelerator.is_fsdp2:
            raise ValueError("this is FSDP's first version; ask for the second (mosaic_gym/training/fsdp.yaml)")


class Run:
    """One training run in a folder: `update(loss)` until `finished`, then `close()`.

    As a context manager it closes itself, and writes a checkpoint when Ctrl-C or SIGTERM ends the block.

    Args:
        folder: where checkpoints, logs and the finished weights go; an unfinished run there is resumed.
        model: the network; an exponential moving average of its weights is what a recipe ships.
        learning_rate: the peak; linear warm-up, then a cosine to zero at the end of the budget.
        minutes: wall time of the whole run, earlier parts included.
        steps: optimizer steps of the whole run. Give exactly one of the two.
        accelerator: device and precision.
        weight_decay, ema_decay, clip_norm: of AdamW, of the moving average, of the gradient.
        checkpoint_minutes: time between checkpoints.
        averaged: whether there is a moving average; without it a checkpoint holds the trained weights alone.
        begin: the finished weights that `model` starts from, if any.
        parts: a fingerprint (see `fingerprint_of`) of the finished weights that the run trains against, or of those
            that a pretrained model starts from; None if there are none.
        recipe: the identity of the run, see `recipe_of`; None if any run may be resumed.
        shared: whether several processes may train together.

    Raises:
        ValueError: not exactly one of `minutes` and `steps`; processes that cannot train together; or the folder holds
            a run that started from other weights, was trained against other parts, or has another recipe.
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
        check_budget(minutes, steps)
        check_processes(accelerator, minutes, averaged, shared)
        if accelerator.distributed_type == DistributedType.FSDP:
            # As on one device: autocast rounds products only. In bfloat16, timesteps up to 1000 would be rounded to
            # multiples of 4.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
        self.folder, self.minutes, self.steps = Path(folder), minutes, steps
        self.identity = {"begin": None if begin is None else str(begin), "parts": parts, "recipe": recipe}
        self.folder.mkdir(parents=True, exist_ok=True)
        check_resumable(self.folder, self.identity)
        self.learning_rate, self.ema_decay, self.clip_norm = learning_rate, ema_decay, clip_norm
        self.accelerator = accelerator
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 products, eight times as fast
        self.average = copy.deepcopy(model).requires_grad_(False).to(accelerator.device) if averaged else None
        optimizer = torch.optim.AdamW(
            # No variable holds this list: whole weights would then stay in memory after they are sharded.
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99),
        )  # fmt: skip
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.step_index, self.earlier_s = 0, 0.0
        self.checkpoint_s = 60.0 * checkpoint_minutes
        accelerator.wait_for_everyone()  # until all processes have read the folder
        if accelerator.is_main_process:
            finish_rename(self.folder)
        accelerator.wait_for_everyone()
        if checkpoint_in(self.folder) is not None:
            self._resume()
        self._updating = False
        self.start_clock()
        self._open_log()

    def _open_log(self) -> None:
        """Opens the progress bar, and in the main process the TensorBoard log."""
        is_main = self.accelerator.is_main_process
        self.writer = None
        if is_main:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder / "log")
        total, unit = (self.steps, "step") if self.steps is not None else (round(60 * self.minutes), "s")
        self.bar = tqdm(total=total, initial=self._spent(), unit=unit, disable=not is_main, mininterval=2.0)
        if self.step_index and not self.finished:
            self.bar.write(f"{self.folder} holds a run of {self.step_index} steps: it goes on from there")
        if self.finished:
            self.bar.write(f"{self.folder} holds a run that is finished: nothing is trained. --out starts another")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the run. An interruption writes a checkpoint first, unless it cut an optimizer step in two or other
        processes train along, which may be at another step; an error writes none."""
        if kind is None:
            self.close()
            return
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        if interrupted and self.step_index and not self._updating and self.accelerator.num_processes == 1:
            self.checkpoint()
        self._close_log()

    def start_clock(self) -> None:
        """Counts minutes from now on, so that preparations between the run's creation and this call do not count."""
        self.started = self.saved_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, earlier parts included."""
        return self.earlier_s + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        if self.steps is not None:
            return min(1.0, self.step_index / self.steps)
        return min(1.0, self.elapsed_s / (60.0 * self.minutes))

    def _spent(self) -> int:
        """The spent budget in steps or seconds."""
        return self.step_index if self.steps is not None else round(min(self.elapsed_s, 60 * self.minutes))

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    @property
    def seed(self) -> int:
        """The seed of everything random in the present step: the same after a resume, different in every process."""
        return self._seed_at(self.step_index)

    def seeds(self, first: int) -> Iterator[int]:
        """The seeds of step `first` and of all later steps."""
        return map(self._seed_at, itertools.count(first))

    def _seed_at(self, step_index: int) -> int:
        return 1_000_003 * (step_index + 1) + self.accelerator.process_index

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for the present step; an accelerator's draws differ from the CPU's."""
        return torch.Generator(device).manual_seed(self.seed)

    def update(self, loss: torch.Tensor, scalars: dict[str, float | torch.Tensor] | None = None) -> None:
        """One optimizer step on `loss`, then the moving average, the log, and a checkpoint when it is due.

        Args:
            scalars: logged beside the loss, every `LOG_EVERY` steps. If `loss` is only the last part of a loss whose
                other gradients are there already, pass the whole one here as `loss`. Tensors are read only when they
                are logged, because reading one makes the accelerator finish its queue.

        Raises:
            FloatingPointError: the loss is NaN or infinite. It is read every `LOG_EVERY` steps and before a checkpoint,
                so that every checkpoint is from before.
        """
        warm_up = min(1.0, (self.step_index + 1) / WARM_UP_STEPS)
        rate = self.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self._updating = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._update_average()
        self.step_index += 1
        self._updating = False
        self.bar.n = self._spent()
        due = self._is_due()
        if due or self.step_index % LOG_EVERY == 0:
            self._check_finite(float(loss.detach()))
        if self.step_index % LOG_EVERY == 0:
            metrics = {name: float(value) for name, value in {"loss": loss.detach(), **(scalars or {})}.items()}
            self.bar.set_postfix({"step": self.step_index, **metrics, "loss": f"{metrics['loss']:.4f}"})
            for name, value in {**metrics, "rate": rate}.items() if self.writer else ():
                self.writer.add_scalar(name, value, self.step_index)
        if due:
            self.checkpoint()

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        last = checkpoint_in(self.folder)
        state = "there is no checkpoint yet" if last is None else f"{last} holds step {read_metadata(last)['step']}"
        raise FloatingPointError(
            f"the loss is {loss} at step {self.step_index}, and nothing is saved of it: {state}. The same command goes "
            "on from there; a lower --learning-rate, in another folder, avoids it"
        )

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint; the same answer in all processes, whose clocks differ.

        Processes agree every tenth step only, because agreeing makes them wait for each other.
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

    def trained(self) -> Tensors:
        """The last checkpoint's whole trained weights by name, on the CPU."""
        return read_tensors(self.folder / "checkpoint", "model")

    def checkpoint(self) -> None:
        """Writes everything that a resume needs; every process has to call it, and the main one writes."""
        self.saved_at = time.monotonic()
        source = self.accelerator.unwrap_model(self.model)
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        if self.average is None:
            networks = {"model": _trainable(source)}
        else:
            networks = {"model": source.state_dict(), "average": self.average.state_dict()}
        metadata = {"step": self.step_index, "elapsed_s": self.elapsed_s, **self.identity}
        write_checkpoint(self.folder, {**networks, "optimizer": moments}, metadata, self.accelerator)

    def _resume(self) -> None:
        """Loads the folder's checkpoint."""
        saved = self.folder / "checkpoint"
        metadata = read_metadata(saved)
        self.step_index, self.earlier_s = metadata["step"], metadata["elapsed_s"]
        source = self.accelerator.unwrap_model(self.model)
        weights = read_tensors(saved, "model")
        own = _trainable(source) if self.average is None else source.state_dict()
        if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
            raise ValueError(f"{saved} holds weights of other names or sizes; choose another folder with --out")
        if self.average is None:
            for name, parameter in own.items():
                parameter.copy_(shard_like(weights[name], parameter))
        else:
            source.load_state_dict(weights)
            self.average.load_state_dict(read_tensors(saved, "average"))
        state: dict[int, Tensors] = {}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, value in read_tensors(saved, "optimizer").items():
            index, moment = name.split(".", 1)
            parameter = parameters[int(index)]
            state.setdefault(int(index), {})[moment] = value if moment == "step" else shard_like(value, parameter)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def close(self) -> None:
        """Writes the last checkpoint and closes the log."""
        self.checkpoint()
        self._close_log()

    def _close_log(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()


def _trainable(model: nn.Module) -> Tensors:
    """The trainable weights by name, without their gradients."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
