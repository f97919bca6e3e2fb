"""A net that is nothing but its eye, and the loss of one fused target: what methods without annotator-specific parts are made of."""

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs
from rayters.methods.robust_losses import soft_dice
from rayters.methods.targets import soft_cross_entropy


class PlainNet(nn.Module):
    """views (B, V, C, *S) -> the eye's own outputs; labels are not looked at."""

    def __init__(self, eye: Eye) -> None:
        super().__init__()
        self.eye = eye()

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        del labels
        outputs: Outputs = self.eye(views)
        return outputs


def dice_and_entropy(logits: Tensor, target: Tensor, dice: float) -> Loss:
    """Cross-entropy in nats, plus ``dice`` times one minus soft Dice.

    logits: (B, K, *S); target: (B, K, *S) probabilities, all zero where there is no target.
    """
    parts = {"cross_entropy": soft_cross_entropy(logits, target)}
    if dice:
        parts["dice"] = dice * soft_dice(logits.log_softmax(1), target)
    per_patch = sum(parts.values(), logits.new_zeros(len(logits)))
    return Loss(per_patch=per_patch, parts={name: part.detach().mean() for name, part in parts.items()})
