"""What a run may look at while it trains: the annotators' own, noisy, labels of the validation split. Never the reference."""

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from rayters.methods import AnnotatorConfusion, Outputs
from rayters.methods.sentinel import judge, standing, tally
from rayters.methods.targets import majority
from rayters.networks.task import Task
from rayters.training.device import Arrays, on_device
from rayters.training.run import Run
from rayters.training.step import autocast, plain
from rayters.training.team import Team


@torch.no_grad()
def validate(run: Run, task: Task, net: nn.Module, batches: Iterable[Arrays], *, team: Team) -> dict[str, float]:
    """Loss and agreement on the validation split, over the team.

    Returns "validation_loss" (the method's own, at the end of its schedule), the figures of a ``Standing`` towards what the method holds
    to be the annotators' common opinion, else their majority vote, and "astray": 1 when the sentinel would start such a training again.
    An untrained net is no better; who asks knows whether the training is at its end.
    """
    net.eval()
    size = 2 + 5 + task.annotators * task.classes**2  # loss, batches, tally
    sums = torch.zeros(size, dtype=torch.float64, device=team.device)
    trusted: Tensor | None = None
    for columns in on_device(batches, team.device):
        batch = plain(columns, task)
        with autocast(run, team.device):
            outputs = net(batch.views)
        outputs = {name: value.float() for name, value in outputs.items()}
        trusted = outputs.get("trust")
        loss = run.method.loss(outputs, batch.labels, 1.0).total.double()
        tallied = tally(run.method.predict(outputs).posterior, _opinion(run, outputs, batch.labels), batch.labels)
        sums += torch.cat([torch.stack([loss, loss.new_ones(())]), tallied])
    sums = team.sum(sums)
    stands = standing(sums[2:], task.classes, trusted)
    astray = judge(stands, explains=isinstance(run.method, AnnotatorConfusion)).state == "astray"
    return {"validation_loss": float(sums[0] / sums[1].clamp(min=1)), **asdict(stands), "astray": float(astray)}


def _opinion(run: Run, outputs: Outputs, labels: Tensor) -> Tensor:
    """(B, *S): what the annotators together say, as the method weighs them."""
    if isinstance(run.method, AnnotatorConfusion):
        return run.method.anchor_target(outputs, labels)
    return majority(labels, outputs["logits"].shape[1])
