"""What a run may look at while it trains: the annotators' own, noisy, labels of the validation split. Never the reference."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from casebook import IGNORE
from rayters.methods.targets import majority
from rayters.networks.task import Task
from rayters.training.run import Run
from rayters.training.step import Arrays, autocast, to_device
from rayters.training.team import Team


@torch.no_grad()
def validate(run: Run, task: Task, net: nn.Module, batches: Iterable[Arrays], *, team: Team) -> dict[str, float]:
    """Loss and agreement on the validation split, averaged over the team.

    Returns "validation_loss" (the method's own, at the end of its schedule), "agreement" (Dice of the foreground with the majority
    vote, pooled; 1 when neither has any), and "astray" (1 when the method's sentinel says so).
    """
    net.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=team.device)  # loss, batches, 2 x intersection, sizes
    for arrays in batches:
        batch = to_device(arrays, task, team.device)
        with autocast(run, team.device):
            outputs = net(batch.views)
        outputs = {name: value.float() for name, value in outputs.items()}
        loss = run.method.loss(outputs, batch.labels, 1.0).total
        predicted = run.method.predict(outputs).posterior.argmax(1)
        sums += torch.cat(
            [torch.stack([loss, loss.new_ones(())]), _overlap(predicted, majority(batch.labels, task.classes))]
        )
    loss_sum, count, shared, sizes = team.sum(sums).tolist()
    agreement = shared / sizes if sizes else 1.0
    return {"validation_loss": loss_sum / max(count, 1), "agreement": agreement, "astray": 0.0}


def _overlap(predicted: Tensor, vote: Tensor) -> Tensor:
    """Twice the foreground pixels of equal class, and the sum of both foregrounds, where somebody looked."""
    seen = vote != IGNORE
    same = ((predicted == vote) & (vote > 0) & seen).sum()
    return torch.stack([2 * same, ((predicted > 0) & seen).sum() + ((vote > 0) & seen).sum()]).float()
