"""Kept for notebooks: see hills."""

from gcpl_lab.views.hills import draw_hills, pair_hills

__all__ = ["draw_hills", "pair_hills"]
