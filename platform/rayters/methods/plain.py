"""A net that is nothing but its eye: what every method without annotator-specific parts builds."""

from torch import Tensor, nn

from rayters.methods.method import Eye, Outputs


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
