"""Widgets: sliders, buttons and a figure, with core ipywidgets only.

Each widget is one box; as the last expression of a cell it is shown together with a PNG of its present state, so that
a page without a kernel has a figure. Errors of a callback appear in the widget and stay in ``error``.
"""

from gcpl_lab.views.widgets.explorers import (
    ClassifierRace,
    CostExplorer,
    NoiseSlider,
    PairExplorer,
    Player,
    ThresholdExplorer,
)
from gcpl_lab.views.widgets.guess import Guess, tally_guesses
from gcpl_lab.views.widgets.review import SampleReviewer
from gcpl_lab.views.widgets.training import TrainingMonitor

__all__ = [
    "ClassifierRace",
    "CostExplorer",
    "Guess",
    "NoiseSlider",
    "PairExplorer",
    "Player",
    "SampleReviewer",
    "ThresholdExplorer",
    "TrainingMonitor",
    "tally_guesses",
]
