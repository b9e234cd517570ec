"""From a workshop to a decision: a pilot on own images, its risks in numbers, and the watch after it."""

from gcpl_lab.pilot.pilot import Pilot

__all__ = ["Pilot"]
