"""Whom the network believes: every method, once. The command line, the search, the server and the laws in the tests read ALL."""

from rayters.methods.annotator_confusion import AnnotatorConfusion
from rayters.methods.dawid_skene import DawidSkene
from rayters.methods.majority_vote import MajorityVote
from rayters.methods.mean_labels import MeanLabels
from rayters.methods.method import Loss, Method, Outputs, Prediction
from rayters.methods.one_annotator import OneAnnotator
from rayters.methods.random_annotator import RandomAnnotator
from rayters.methods.robust import RobustLoss
from rayters.methods.staple import Staple
from rayters.methods.t_loss import TLoss

ALL = (
    MajorityVote,
    MeanLabels,
    AnnotatorConfusion,
    RobustLoss,
    TLoss,
    RandomAnnotator,
    OneAnnotator,
    Staple,
    DawidSkene,
)

__all__ = [
    "ALL",
    "AnnotatorConfusion",
    "DawidSkene",
    "Loss",
    "MajorityVote",
    "MeanLabels",
    "Method",
    "OneAnnotator",
    "Outputs",
    "Prediction",
    "RandomAnnotator",
    "RobustLoss",
    "Staple",
    "TLoss",
]
