"""GCPL, CoMPLe and the discriminative objective; importing the room registers them."""

from gcpl_lab.gcpl import discriminative, objectives

__all__ = ["discriminative", "objectives"]
