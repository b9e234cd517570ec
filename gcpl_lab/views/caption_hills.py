"""Kept for notebooks: see hills."""

from gcpl_lab.views.hills import CaptionDistances, caption_hills

__all__ = ["CaptionDistances", "caption_hills"]
