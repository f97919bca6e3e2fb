"""Whom the network believes: every method, once. The command line, the search, the server and the laws in the tests read ALL."""

from rayters.methods.majority_vote import MajorityVote
from rayters.methods.mean_labels import MeanLabels
from rayters.methods.method import Loss, Method, Outputs, Prediction

ALL = (MajorityVote, MeanLabels)

__all__ = ["ALL", "Loss", "MajorityVote", "MeanLabels", "Method", "Outputs", "Prediction"]
