"""Numbers, figures and reports about merged models; numbers apart from plots."""

from taskarith_fast.analysis.cosine import cosine_map
from taskarith_fast.analysis.disentanglement import Disentanglement, disentanglement_error, symmetric_kl
from taskarith_fast.analysis.disturb import perturbed, pruned
from taskarith_fast.analysis.edits import Edits
from taskarith_fast.analysis.lambda_curve import LambdaCurve, lambda_curve
from taskarith_fast.analysis.landscape import Landscape, landscape
from taskarith_fast.analysis.localization import AccuracyRatios, localization
from taskarith_fast.analysis.mask_iou import mask_iou
from taskarith_fast.analysis.mask_share import MaskShare, mask_share
from taskarith_fast.analysis.plane import Plane, principal_plane
from taskarith_fast.analysis.radar import Radar, radar
from taskarith_fast.analysis.rank_curves import RankCurves, rank_curves
from taskarith_fast.analysis.task_count import TaskCount, task_count

__all__ = [
    "AccuracyRatios",
    "Disentanglement",
    "Edits",
    "LambdaCurve",
    "Landscape",
    "MaskShare",
    "Plane",
    "Radar",
    "RankCurves",
    "TaskCount",
    "cosine_map",
    "disentanglement_error",
    "lambda_curve",
    "landscape",
    "localization",
    "mask_iou",
    "mask_share",
    "perturbed",
    "principal_plane",
    "pruned",
    "radar",
    "rank_curves",
    "symmetric_kl",
    "task_count",
]
