"""How strongly patches are moved and recoloured while training; settings only, what they do is in augment.py."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Strengths; 0 turns a part off. Nothing is done by default.

    Raises:
        ValueError: when a strength is out of its range.
    """

    flips: bool = False  # every axis, half of the time
    rotation_deg: float = 0.0  # 0..180, uniform to either side
    scale: float = 0.0  # 0..0.9, magnified or shrunk by up to 1 + scale
    elastic: float = 0.0  # 0..0.2, standard deviation of the bending at a control point, of the target's side
    gain: float = 0.0  # contrast times 1 +- gain, per channel, uniform
    shift: float = 0.0  # brightness, in standard deviations of the channel, uniform to either side
    stain: float = 0.0  # H&E only: haematoxylin, eosin and residual each times 1 +- stain, plus +- stain / 4

    def __post_init__(self) -> None:
        limits = {"rotation_deg": 180.0, "scale": 0.9, "elastic": 0.2, "gain": 0.9, "shift": 10.0, "stain": 0.9}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}, expected 0..{limit:g}")

    @property
    def is_off(self) -> bool:
        """True when patches stay as they are."""
        return self == Augmentation()
