"""Rivals of prompt learning: one module a family; importing the package registers all of them, in this order."""

from gcpl_lab.baselines import zero_shot, features, coop, tip_adapter, gda, lp_plus_plus, clap  # isort: skip
from gcpl_lab.baselines import denoiser, pixels, multilabel, multilabel_text  # isort: skip

__all__ = ["clap", "coop", "denoiser", "features", "gda", "lp_plus_plus", "multilabel", "multilabel_text"]
__all__ += ["pixels", "tip_adapter", "zero_shot"]
