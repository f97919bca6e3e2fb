"""What the network gets to see: every gaze, once."""

from rayters.gaze.fixed import FixedGaze
from rayters.gaze.gaze import Gaze

ALL = (FixedGaze,)

__all__ = ["ALL", "FixedGaze", "Gaze"]
