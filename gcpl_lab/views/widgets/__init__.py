"""Views that answer to a hand: sliders, buttons and a picture, with core ipywidgets only.

Each view is one box; as the last expression of a cell it is shown together with a PNG of its first state, so that
a page without a kernel has a picture. Errors of a callback appear in the view and stay in ``error``.
"""

from gcpl_lab.views.widgets.base import View
from gcpl_lab.views.widgets.classes import PairExplorer, ThresholdExplorer
from gcpl_lab.views.widgets.review import SampleReviewer
from gcpl_lab.views.widgets.slide_builder import SlideBuilder
from gcpl_lab.views.widgets.sliders import ClassifierRace, JourneySlider, NoiseSlider
from gcpl_lab.views.widgets.training import TrainingMonitor

__all__ = [
    "ClassifierRace",
    "JourneySlider",
    "NoiseSlider",
    "PairExplorer",
    "SampleReviewer",
    "SlideBuilder",
    "ThresholdExplorer",
    "TrainingMonitor",
    "View",
]
