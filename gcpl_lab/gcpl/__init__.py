"""Objectives for class prompts; importing the room registers them, in this order."""

from gcpl_lab.gcpl import objectives, discriminative, comple_same_image, mc_ti, directional  # isort: skip

__all__ = ["comple_same_image", "directional", "discriminative", "mc_ti", "objectives"]
