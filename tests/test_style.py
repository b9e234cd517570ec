"""Class colours as people with colour-vision deficiency see them, and the settings that all figures share.

Simulation: Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB. Difference: distance in OKLab (Ottosson
2020), where black and white are 1 apart.
"""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.evidence import EVIDENCE_COLORS
from gcpl_lab.views.slides import THEMES
from gcpl_lab.views.style import MARKERS, PALETTE, PART_LOOKS, class_style, family_order, family_spans

SIMULATIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_CONES = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.2119035, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.6299787],
]
TO_OKLAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.9779985, -2.42859221, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def linear(color):
    encoded = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def oklab(color, simulation="normal"):
    """OKLab of #RRGGBB as seen under a simulation."""
    seen = np.clip(np.asarray(SIMULATIONS[simulation]) @ linear(color), 0, 1)
    return np.asarray(TO_OKLAB) @ np.cbrt(np.asarray(TO_CONES) @ seen)


def least(simulation, *colors):
    """The least difference of two of the colours."""
    return min(np.linalg.norm(oklab(a, simulation) - oklab(b, simulation)) for a, b in combinations(colors, 2))


def test_oklab_by_known_values():
    assert oklab("#FFFFFF") == pytest.approx([1, 0, 0], abs=1e-4)
    assert oklab("#FF0000") == pytest.approx([0.628, 0.2249, 0.1258], abs=1e-3)  # published, of sRGB red
    for simulation, matrix in SIMULATIONS.items():
        assert np.sum(matrix, axis=1) == pytest.approx(np.ones(3), abs=1e-5), simulation  # grey stays grey
    assert least("deuteranopia", "#FF0000", "#7A6A00") < least("normal", "#FF0000", "#7A6A00") / 2


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_colours_differ_for_every_eye(simulation):
    assert least(simulation, *PALETTE) >= 0.07
    assert least(simulation, *(color for color, _ in PART_LOOKS.values())) >= 0.2  # parts of the tail
    for theme in THEMES.values():  # bars stand out from their ground in both themes
        assert least(simulation, f"#{theme['accent']}", f"#{theme['ground']}") >= 0.3
        assert least(simulation, f"#{theme['accent']}", f"#{theme['text']}") >= 0.15


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_both_ends_of_an_error_map_differ_in_grey_and_for_every_eye(simulation):
    for_b, _, for_a = EVIDENCE_COLORS
    assert least(simulation, for_a, for_b) >= 0.25
    luminance = [float(linear(color) @ (0.2126, 0.7152, 0.0722)) + 0.05 for color in (for_a, for_b)]
    assert luminance[1] / luminance[0] >= 2.5  # told apart without colours
    assert luminance[0] / 0.05 >= 3  # and from black


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_look_alikes_differ_most(simulation):
    looks = class_style(FASHION_CLASSES, FASHION_FAMILIES)
    for members, wanted in ((FASHION_FAMILIES["tops"], 0.15), (FASHION_FAMILIES["footwear"], 0.22)):
        assert least(simulation, *(looks[name][0] for name in members)) >= wanted
    assert least(simulation, *(looks[name][0] for name in ("pullover", "coat", "shirt"))) >= 0.22


def test_no_two_look_alikes_are_shades_of_one_hue_and_no_class_is_pale():
    looks = class_style(FASHION_CLASSES, FASHION_FAMILIES)
    for members in FASHION_FAMILIES.values():
        lab = np.array([oklab(looks[name][0]) for name in members])
        chroma, hues = np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
        for (a, hue), (b, other) in combinations(zip(chroma, hues, strict=True), 2):
            apart = abs((hue - other + 180) % 360 - 180)
            assert min(a, b) < 0.04 or apart >= 25, (hue, other)  # greys have no hue
    for color in PALETTE:
        assert 1.05 / (linear(color) @ (0.2126, 0.7152, 0.0722) + 0.05) >= 2.2, f"{color} is too pale on white"


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
