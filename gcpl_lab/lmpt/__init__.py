"""LMPT; importing the room registers the losses that it has."""

from gcpl_lab.lmpt import alternatives, losses

__all__ = ["alternatives", "losses"]
