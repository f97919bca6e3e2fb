"""What learns: a net, its optimiser, and what belongs to them; one value to save and to restore.

bare      the net's own parameters, under the names that a saved model has
net       the same, as the team wraps it (DDP, FSDP2), perhaps compiled: what a step runs
average   exponential moving average of bare, where the run asks for one
shown     what is validated and saved: the average, else the net itself
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rayters.networks.task import Task
from rayters.training.model import build_net
from rayters.training.run import Run
from rayters.training.team import Team

WHOLE = StateDictOptions(full_state_dict=True)  # sharded parameters are gathered: a checkpoint fits a team of any size


class Learner:
    """A fresh net of a run, drawn from ``run.seed`` and the attempt, on the team's device.

    Raises:
        ValueError: when an average is asked for of a net whose parameters are sharded.
    """

    def __init__(self, run: Run, task: Task, team: Team, attempt: int) -> None:
        torch.manual_seed(run.seed * 1000 + attempt)
        self.run, self.task, self.team = run, task, team
        self.bare = build_net(run, task).to(team.device)
        if run.average and team.shards:
            raise ValueError("run.average follows whole parameters, which sharding='fsdp' cuts up: use sharding='ddp'")
        self.average = (
            AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(run.average))  # type: ignore[no-untyped-call]
            if run.average
            else None
        )
        self.wrapped = team.wrap(self.bare)
        self.net: nn.Module = torch.compile(self.wrapped) if run.compile else self.wrapped  # type: ignore[assignment]
        self.optimizer = torch.optim.AdamW(self.bare.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=run.precision == "float16")

    def without_exchange(self) -> AbstractContextManager[Any]:
        """Gradients of a backward pass in it stay with this member of the team."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return nullcontext()  # FSDP2 adds its exchanges up itself

    def shown(self) -> nn.Module:
        """The net to validate and to save; every member of the team must ask."""
        if self.average is not None:
            return self.average.module
        if not self.team.shards:
            return self.bare
        whole = build_net(self.run, self.task).to(self.team.device)
        whole.load_state_dict(get_model_state_dict(self.bare, options=WHOLE))
        return whole

    def state(self) -> dict[str, Any]:
        """Tensors and numbers from which ``load`` goes on; every member of the team must ask."""
        if self.team.shards:
            net = get_model_state_dict(self.bare, options=WHOLE)
            optimizer: Mapping[str, Any] = get_optimizer_state_dict(self.bare, self.optimizer, options=WHOLE)
        else:
            net, optimizer = self.bare.state_dict(), self.optimizer.state_dict()
        state = {"net": net, "optimizer": optimizer, "scaler": self.scaler.state_dict()}
        return state | ({} if self.average is None else {"average": self.average.state_dict()})

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        if self.team.shards:
            set_model_state_dict(self.bare, state["net"], options=WHOLE)
            set_optimizer_state_dict(self.bare, self.optimizer, state["optimizer"], options=WHOLE)
        else:
            self.bare.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
