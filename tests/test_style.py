"""Class colours as people with colour-vision deficiency see them.

Simulation: Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB. Difference: CIE76 in CIELAB (D65).
"""

from itertools import combinations

import numpy as np
import pytest

from gcpl_lab.views.slides import THEMES
from gcpl_lab.views.style import MARKERS, PALETTE, PART_LOOKS, class_style

SIMULATIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(color, simulation="normal"):
    """CIELAB of #RRGGBB as seen under a simulation."""
    encoded = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(SIMULATIONS[simulation] @ linear, 0, 1)
    ratio = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def delta(one, other, simulation):
    return float(np.linalg.norm(lab(one, simulation) - lab(other, simulation)))


def test_lab_by_known_values():
    assert lab("#FFFFFF") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#FF0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # a published value of sRGB red
    for simulation, matrix in SIMULATIONS.items():
        assert matrix.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5), simulation  # grey stays grey
    assert delta("#FF0000", "#7A6A00", "deuteranopia") < delta("#FF0000", "#7A6A00", "normal") / 2


@pytest.mark.parametrize("simulation", list(SIMULATIONS))
def test_all_class_colours_differ_for_every_eye(simulation):
    assert min(delta(one, other, simulation) for one, other in combinations(PALETTE, 2)) >= 16


@pytest.mark.parametrize("simulation", ["normal", "protanopia", "deuteranopia"])
def test_members_of_a_family_differ_more(simulation):
    """Six colours in a row, as the members of one family take them, for the eyes that the palette was ordered for."""
    for start in range(len(PALETTE) - 5):
        assert min(delta(one, other, simulation) for one, other in combinations(PALETTE[start : start + 6], 2)) >= 23.9


@pytest.mark.parametrize("simulation", list(SIMULATIONS))
def test_parts_of_the_tail_differ_for_every_eye(simulation):
    colors = [color for color, _ in PART_LOOKS.values()]
    assert min(delta(one, other, simulation) for one, other in combinations(colors, 2)) >= 40
    assert len({marker for _, marker in PART_LOOKS.values()}) == len(PART_LOOKS)


def test_colour_never_stands_alone():
    looks = class_style([f"class {place}" for place in range(len(PALETTE))])
    assert len({color for color, _ in looks.values()}) == len({marker for _, marker in looks.values()}) == len(PALETTE)


def test_colours_and_markers_together_repeat_only_after_110_classes():
    names = [f"class {place}" for place in range(len(PALETTE) * len(MARKERS))]
    assert len(set(class_style(names).values())) == len(names)


def test_bars_stand_out_from_their_ground_for_every_eye_in_both_themes():
    for colors in THEMES.values():
        for simulation in SIMULATIONS:
            assert delta(f"#{colors['accent']}", f"#{colors['ground']}", simulation) >= 40
            assert delta(f"#{colors['accent']}", f"#{colors['text']}", simulation) >= 30
