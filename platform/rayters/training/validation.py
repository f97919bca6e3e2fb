"""What a run may look at while it trains: the annotators' own, noisy, labels of the validation split. Never the reference."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rayters.methods import AnnotatorConfusion, Outputs
from rayters.methods.sentinel import judge, overlap
from rayters.methods.targets import majority
from rayters.networks.task import Task
from rayters.training.run import Run
from rayters.training.step import Arrays, autocast, to_device
from rayters.training.team import Team


@torch.no_grad()
def validate(
    run: Run, task: Task, net: nn.Module, batches: Iterable[Arrays], *, team: Team, last: bool
) -> dict[str, float]:
    """Loss and agreement on the validation split, over the team.

    Returns "validation_loss" (the method's own, at the end of its schedule), "agreement" (Dice of the foreground, pooled, with what the
    method holds to be the annotators' common opinion, else with their majority vote; 1 when neither has any), and "astray": 1 when the
    training is at its ``last`` epoch and the sentinel says that it must be started again. Agreement is judged at the end only: a slow
    learner is not astray.
    """
    net.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=team.device)  # loss, batches, 2 x intersection, sizes
    outputs: Outputs = {}
    for arrays in batches:
        batch = to_device(arrays, task, team.device)
        with autocast(run, team.device):
            outputs = net(batch.views)
        outputs = {name: value.float() for name, value in outputs.items()}
        loss = run.method.loss(outputs, batch.labels, 1.0).total.double()
        predicted = run.method.predict(outputs).posterior.argmax(1)
        sums += torch.cat(
            [torch.stack([loss, loss.new_ones(())]), overlap(predicted, _opinion(run, outputs, batch.labels))]
        )
    loss_sum, count, shared, sizes = team.sum(sums).tolist()
    agreement = shared / sizes if sizes else 1.0
    verdict = judge(agreement=agreement, average=outputs.get("average"))
    astray = last and run.method.needs_identity and verdict.state == "astray"
    return {"validation_loss": loss_sum / max(count, 1), "agreement": agreement, "astray": float(astray)}


def _opinion(run: Run, outputs: Outputs, labels: Tensor) -> Tensor:
    """(B, *S): what the annotators together say, as the method weighs them."""
    if isinstance(run.method, AnnotatorConfusion):
        return run.method.anchor_target(outputs, labels)
    return majority(labels, outputs["logits"].shape[1])
