"""What the network gets to see: every gaze, once."""

from rayters.gaze.fixed import FixedGaze
from rayters.gaze.foveation import FoveationGaze
from rayters.gaze.gaze import Gaze
from rayters.gaze.several import AverageGaze, EnsembleGaze, RandomGaze

ALL = (FixedGaze, RandomGaze, AverageGaze, EnsembleGaze, FoveationGaze)

__all__ = ["ALL", "AverageGaze", "EnsembleGaze", "FixedGaze", "FoveationGaze", "Gaze", "RandomGaze"]
