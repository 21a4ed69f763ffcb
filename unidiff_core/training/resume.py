"""Resuming: progress comes from the checkpoint, every setting from the configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch.optim.lr_scheduler import LambdaLR

from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.shared import everybodys
from unidiff_core.serialization.description import describe

KEY = "settings"
"""Of a checkpoint: name → value, what its run was configured with."""
PROCESS = "process of "
_NO_SETTING = {"params", "param_names", "lr"}
_PLAIN = (bool, int, float, str, type(None))


class Resume(pl.Callback):
    """Goes on from a checkpoint with the settings of the configuration, and tells each that was another.

    Lightning restores optimizers, schedules and callbacks with everything they were: a new learning rate, weight decay,
    `max_steps` of a cosine or patience would be ignored. Here the step, the moments, a plateau's reductions and the
    number of updates stay restored; the parameters of every constructor are those that the configuration gave.
    `UniDiffuser` brings it along.
    """

    def __init__(self) -> None:
        self._callbacks: list[tuple[pl.Callback, dict[str, Any]]] | None = None
        self._then: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the settings."""
        checkpoint[KEY] = settings(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at the callbacks before they are restored."""
        self._then = dict(checkpoint.get(KEY) or {})
        self._callbacks = [(row, _parameters(row)) for row in trainer.callbacks]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at optimizers and schedules before they are restored; callbacks may have been (not under FSDP2)."""
        self._restore_callbacks()
        self._now = settings(trainer)
        self._groups = [[dict(group, params=None) for group in row.param_groups] for row in trainer.optimizers]
        self._schedules = [_of_schedule(row.scheduler) for row in trainer.lr_scheduler_configs]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the settings back, and tell what has changed."""
        _agree(trainer, self._now)
        if self._callbacks is None:
            return
        then = settings(trainer) | self._then
        for name, value in self._now.items():
            if name in then and _comparable(then[name]) != _comparable(value):
                if name.startswith(PROCESS):
                    raise ValueError(
                        f"the checkpoint was trained with another {name}: {then[name]}, and now it is {value}; the "
                        "network's output would mean something else. Change it back, or train into another folder"
                    )
                rank_zero_only(print)(f"resume: {name} {then[name]} → {value}")
        self._restore_callbacks()
        changed = self._restore_optimizers(trainer)
        for config, parameters in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            changed |= _update(config.scheduler, parameters)
        if changed:
            for config in trainer.lr_scheduler_configs:
                _refresh(config.scheduler)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):  # or it saves this step again, in the middle of the next
                callback._last_global_step_saved = trainer.global_step
        self._callbacks = None

    def _restore_callbacks(self) -> None:
        for callback, parameters in self._callbacks or ():
            vars(callback).update(parameters)

    def _restore_optimizers(self, trainer: pl.Trainer) -> bool:
        """Settings of parameter groups; True if a rate is another. A rate without a schedule is a setting itself."""
        changed = False
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, configured in zip(optimizer.param_groups, groups, strict=True):
                old, new = group.get("initial_lr"), configured.get("initial_lr")
                if new is None and not trainer.lr_scheduler_configs:
                    group["lr"] = configured["lr"]
                elif old and new is not None and old != new:
                    group["lr"] *= new / old
                    changed = True
                group.update({name: value for name, value in configured.items() if name not in _NO_SETTING})
        return changed


def _agree(trainer: pl.Trainer, now: Mapping[str, Any]) -> None:
    """All processes begin with the same settings at the same step: a shared folder may lag, and show them others.

    Args:
        trainer: of the processes, which call it together.
        now: the settings of this one; its data may lie elsewhere.

    Raises:
        ValueError: on all processes, if one has others than the first; names them.
    """
    rows = everybodys(trainer, {"step": trainer.global_step, **now})
    told = [
        f"{name} {row.get(name)} on process {rank}, {rows[0].get(name)} on process 0"
        for rank, row in enumerate(rows)
        for name in {**rows[0], **row}
        if name != "data train" and repr(_comparable(row.get(name))) != repr(_comparable(rows[0].get(name)))
    ]
    if told:
        raise ValueError(
            f"the processes begin differently: {'; '.join(told[:5])}. Do all read the same configuration, and see the "
            "same folders?"
        )


def settings(trainer: pl.Trainer) -> dict[str, Any]:
    """What a run is configured with, as plain data by name: of optimizers, schedules, callbacks, data and objective."""
    found: dict[str, Any] = {}
    for optimizer in trainer.optimizers:
        for i, group in enumerate(optimizer.param_groups):
            title = f"group {i} " if len(optimizer.param_groups) > 1 else ""
            values = {name: value for name, value in group.items() if name not in {*_NO_SETTING, "initial_lr"}}
            found |= _titled(title, {"lr": group.get("initial_lr", group["lr"]), **values})
    for config in trainer.lr_scheduler_configs:
        found |= _titled(f"{type(config.scheduler).__name__} ", _parameters(config.scheduler))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        numbers = {name: value for name, value in _parameters(callback).items() if not isinstance(value, str)}
        found |= _titled(f"{type(callback).__name__} ", numbers)
    data = getattr(trainer, "datamodule", None)
    found |= _titled("data ", {name: _one(data, name) for name in ("batch_size", "seed", "train")} if data else {})
    objective = getattr(trainer.lightning_module, "objective", None)
    if objective is not None:
        found |= _titled("", {"balance": objective.balance, "drop_ignored": objective.drops, "seed": objective.seed})
        found |= {f"weight of {name}": _plain(row.weight) for name, row in objective.modalities.items()}
        found |= {f"{PROCESS}{name}": _described(row.process) for name, row in objective.modalities.items()}
        found["timestep law"] = _described(objective.law)
    names = ("max_steps", "max_epochs", "gradient_clip_val", "precision")
    return found | _titled("", {name: _one(trainer, name) for name in names})


def _described(value: object) -> str:
    """An object and its arguments as text; its class alone if no plugin registered it."""
    try:
        return json.dumps(describe(value, load_plugins()))
    except ValueError:
        return type(value).__name__


def _parameters(value: object) -> dict[str, Any]:
    """Parameters of an object's constructor that it keeps under their own names."""
    names = inspect.signature(type(value).__init__).parameters
    return {
        name: vars(value)[name] for name in names if name in vars(value) and name not in ("optimizer", "last_epoch")
    }


def _of_schedule(schedule: Any) -> dict[str, Any]:
    """What of a schedule is configured; one that is made of others has them under `_schedulers`."""
    parts = {"_schedulers": [_of_schedule(part) for part in getattr(schedule, "_schedulers", [])]}
    names = [name for name in ("base_lrs", "_milestones") if hasattr(schedule, name)]
    return _parameters(schedule) | {name: list(getattr(schedule, name)) for name in names} | parts


def _update(schedule: Any, parameters: Mapping[str, Any]) -> bool:
    """Give a schedule its parameters; True if one was another."""
    own = {name: value for name, value in parameters.items() if name != "_schedulers"}
    changed = any(getattr(schedule, name) != value for name, value in own.items())
    vars(schedule).update(own)
    parts = zip(getattr(schedule, "_schedulers", []), parameters["_schedulers"], strict=True)
    parts_changed = [_update(part, row) for part, row in parts]
    return changed or any(parts_changed)


def _refresh(schedule: Any) -> None:
    """The rate at the schedule's own step, where that is a function of the step alone."""
    if isinstance(schedule, LambdaLR):
        rates = [base * f(schedule.last_epoch) for base, f in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    elif hasattr(schedule, "_get_closed_form_lr"):
        rates = schedule._get_closed_form_lr()
    else:
        return
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _one(owner: object, name: str) -> Any:
    return getattr(owner, name, None)


def _titled(title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{title}{name}": _plain(value) for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    rows = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(row, _PLAIN) for row in rows)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
