"""Rivals of prompt learning: one module a family; importing the package registers all of them, in this order."""

from gcpl_lab.baselines import zero_shot, features, coop, tip_adapter, pixels, multilabel  # isort: skip

__all__ = ["coop", "features", "multilabel", "pixels", "tip_adapter", "zero_shot"]
