"""Whom the network believes: every method, once. The command line, the search, the server and the laws in the tests read ALL."""

from rayters.methods.annotator_confusion import AnnotatorConfusion
from rayters.methods.co_teaching import CoTeaching
from rayters.methods.dawid_skene import DawidSkene
from rayters.methods.effective_supervision import EffectiveSupervision
from rayters.methods.majority_vote import MajorityVote
from rayters.methods.mean_labels import MeanLabels
from rayters.methods.mean_teacher import MeanTeacher
from rayters.methods.method import Loss, Method, Outputs, Prediction
from rayters.methods.one_annotator import OneAnnotator
from rayters.methods.pionono import Pionono
from rayters.methods.probabilistic_unet import ProbabilisticUNet
from rayters.methods.random_annotator import RandomAnnotator
from rayters.methods.robust import RobustLoss
from rayters.methods.soft_labels import SoftLabels
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
    SoftLabels,
    EffectiveSupervision,
    MeanTeacher,
    CoTeaching,
    ProbabilisticUNet,
    Pionono,
)

__all__ = [
    "ALL",
    "AnnotatorConfusion",
    "CoTeaching",
    "DawidSkene",
    "EffectiveSupervision",
    "Loss",
    "MajorityVote",
    "MeanLabels",
    "MeanTeacher",
    "Method",
    "OneAnnotator",
    "Outputs",
    "Pionono",
    "Prediction",
    "ProbabilisticUNet",
    "RandomAnnotator",
    "RobustLoss",
    "SoftLabels",
    "Staple",
    "TLoss",
]
