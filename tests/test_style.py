"""Class colours as people with colour-vision deficiency see them, and the settings that all figures share.

Simulation: Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB. Difference: CIE76 in CIELAB (D65).
"""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gcpl_lab.data.fashion import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.slides import THEMES
from gcpl_lab.views.style import MARKERS, PALETTE, PART_LOOKS, class_style, family_order, family_spans

SIMULATIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.95030]])


def lab(color, simulation="normal"):
    """CIELAB of #RRGGBB as seen under a simulation."""
    encoded = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIMULATIONS[simulation]) @ linear, 0, 1)
    ratio = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least(simulation, *colors):
    """The least difference of two of the colours."""
    return min(np.linalg.norm(lab(a, simulation) - lab(b, simulation)) for a, b in combinations(colors, 2))


def test_lab_by_known_values():
    assert lab("#FFFFFF") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#FF0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # a published value of sRGB red
    for simulation, matrix in SIMULATIONS.items():
        assert np.sum(matrix, axis=1) == pytest.approx(np.ones(3), abs=1e-5), simulation  # grey stays grey
    assert least("deuteranopia", "#FF0000", "#7A6A00") < least("normal", "#FF0000", "#7A6A00") / 2


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_colours_differ_for_every_eye(simulation):
    assert least(simulation, *PALETTE) >= (16 if simulation == "tritanopia" else 17)
    assert least(simulation, *(color for color, _ in PART_LOOKS.values())) >= 40  # parts of the tail
    for theme in THEMES.values():  # bars stand out from their ground in both themes
        assert least(simulation, f"#{theme['accent']}", f"#{theme['ground']}") >= 40
        assert least(simulation, f"#{theme['accent']}", f"#{theme['text']}") >= 30


@pytest.mark.parametrize("simulation", ["normal", "protanopia", "deuteranopia"])
def test_members_of_a_family_differ_more(simulation):
    """Six colours in a row, as the members of one family take them, for the eyes that the palette was ordered for."""
    assert min(least(simulation, *PALETTE[start : start + 6]) for start in range(len(PALETTE) - 5)) >= 24
    looks = class_style(FASHION_CLASSES, FASHION_FAMILIES)
    for members in FASHION_FAMILIES.values():
        assert len(members) == 1 or least(simulation, *(looks[name][0] for name in members)) >= 24


def test_colour_never_stands_alone_and_pairs_repeat_only_after_110_classes():
    for looks in (class_style([f"class {place}" for place in range(len(PALETTE))]), PART_LOOKS):
        colors, markers = map(set, zip(*looks.values(), strict=True))
        assert len(colors) == len(markers) == len(looks)
    names = [f"class {place}" for place in range(len(PALETTE) * len(MARKERS))]
    assert len(set(class_style(names).values())) == len(names) == 110
    assert style.look(110) == style.look(0)


def test_one_order_of_classes_family_by_family():
    order = family_order(FASHION_CLASSES, FASHION_FAMILIES)
    assert sorted(order) == list(range(10))
    spans = family_spans(FASHION_CLASSES, FASHION_FAMILIES)
    assert spans == [("tops", 0, 5), ("footwear", 5, 8), ("trousers", 8, 9), ("bags", 9, 10)]
    for family, start, stop in spans:
        assert tuple(FASHION_CLASSES[place] for place in order[start:stop]) == FASHION_FAMILIES[family]
    assert family_spans(["a", "b", "c"], {"one": ["b", "absent"], "two": ["c", "b"]}) == [("one", 0, 1), ("two", 1, 2)]
    with pytest.raises(DataError, match="'shirt' occurs more than once"):
        family_order(["shirt", "shirt"], None)


def test_long_names_are_cut_in_the_middle_and_dollars_are_no_mathematics():
    assert style.label_text("shirt") == "shirt"
    assert style.label_text("abcdefghijkl", 6) == "abc…kl"
    assert style.label_text("a $x$") == r"a \$x\$"


def test_style_is_lifted_afterwards_and_unknown_context_named():
    before = dict(plt.rcParams)
    with style.figure_style("slide"):
        assert plt.rcParams["font.size"] == 18
    assert dict(plt.rcParams) == before
    with pytest.raises(DataError, match="'poster' is unknown"), style.figure_style("poster"):
        pass
