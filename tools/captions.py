"""Captions that imitate the web: measured attributes, and names that are often wrong in their family.

The tiny models learn language from these captions. What an image shows (tone, length, sleeves,
front, ...) is measured from its pixels and told truly; what it is called is drawn from the way careless
people name things: a coarse name, or a fine name out of ``SPOKEN_NAMES``. So the models know what things
look like but not reliably what they are called, which is the situation that prompt learning is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gcpl_lab.data.samples import FASHION_CLASSES
from tools.raw_fashion import family_of

COARSE_NAMES = {"tops": "top", "footwear": "shoe", "trousers": "pair of trousers", "bags": "bag"}

SPOKEN_NAMES: dict[str, dict[str, float]] = {
    "t-shirt": {"t-shirt": 0.50, "shirt": 0.25, "pullover": 0.10, "dress": 0.10, "coat": 0.05},
    "shirt": {"t-shirt": 0.45, "shirt": 0.22, "pullover": 0.15, "coat": 0.13, "dress": 0.05},
    "pullover": {"shirt": 0.55, "coat": 0.20, "pullover": 0.15, "t-shirt": 0.10},
    "coat": {"pullover": 0.50, "coat": 0.20, "dress": 0.18, "shirt": 0.12},
    "dress": {"dress": 0.45, "t-shirt": 0.20, "coat": 0.20, "shirt": 0.15},
    "sandal": {"sandal": 0.55, "sneaker": 0.25, "ankle boot": 0.20},
    "sneaker": {"sneaker": 0.60, "sandal": 0.25, "ankle boot": 0.15},
    "ankle boot": {"sneaker": 0.60, "ankle boot": 0.20, "sandal": 0.20},
    "trousers": {"trousers": 1.0},
    "bag": {"bag": 1.0},
}
"""How an image of each true class is called when a fine name is used; every row sums to one."""

ATTRIBUTE_WORDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "tops": {
        "tone": ("dark", "grey", "bright"),
        "shading": ("plain", "shaded", "patterned"),
        "texture": ("smooth", "knitted", "busy"),
        "width": ("slim", "regular", "wide"),
        "symmetry": ("symmetric", "uneven", "lopsided"),
        "fill": ("airy", "shaped", "solid"),
        "sleeves": ("sleeveless", "rolled", "sleeved"),
        "front": ("closed", "seamed", "buttoned"),
        "neck": ("collared", "crewneck", "scooped"),
        "hem": ("tapered", "straight", "flared"),
        "balance": ("underlit", "even", "toplit"),
        "cuffs": ("cropped", "fitted", "hanging"),
    },
    "footwear": {
        "tone": ("dark", "grey", "bright"),
        "shading": ("plain", "shaded", "patterned"),
        "texture": ("smooth", "stitched", "busy"),
        "length": ("flat", "medium", "tall"),
        "width": ("slim", "regular", "wide"),
        "fill": ("strappy", "shaped", "solid"),
        "heel": ("level", "lifted", "heeled"),
        "shaft": ("lowtop", "midtop", "hightop"),
        "balance": ("underlit", "even", "toplit"),
        "sole": ("thin", "soled", "chunky"),
    },
    "trousers": {
        "tone": ("dark", "grey", "bright"),
        "shading": ("plain", "shaded", "patterned"),
        "width": ("slim", "regular", "wide"),
        "hem": ("tapered", "straight", "flared"),
        "symmetry": ("symmetric", "uneven", "lopsided"),
        "front": ("closed", "seamed", "buttoned"),
        "balance": ("underlit", "even", "toplit"),
    },
    "bags": {
        "tone": ("dark", "grey", "bright"),
        "shading": ("plain", "shaded", "patterned"),
        "texture": ("smooth", "stitched", "busy"),
        "length": ("flat", "medium", "tall"),
        "width": ("slim", "regular", "wide"),
        "fill": ("airy", "shaped", "solid"),
        "neck": ("clutched", "handled", "strapped"),
        "balance": ("underlit", "even", "toplit"),
    },
}
"""The three words (lowest, middle, highest third within the family) of every measured attribute."""

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a product photo of a {}",
    "{}",
    "a {}",
    "one {}",
    "this is a {}",
    "a {} on a black background",
)


def measure_attributes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure what a caption may say about images on a black ground.

    Args:
        images: uint8 (batch, 28, 28), bright garment on black.

    Returns:
        float32 (batch,) for every attribute name; only the order within a family has a meaning.
    """
    value = images.astype(np.float32) / 255.0
    mask = value > 0.08
    area = mask.sum((1, 2)).clip(1)
    rows, columns = np.asarray(mask.any(2)), np.asarray(mask.any(1))
    top, bottom = rows.argmax(1), 27 - rows[:, ::-1].argmax(1)
    left, right = columns.argmax(1), 27 - columns[:, ::-1].argmax(1)
    height, width = bottom - top + 1, right - left + 1
    tone = (value * mask).sum((1, 2)) / area
    deviation = np.abs(value - tone[:, None, None]) * mask
    inner = mask[:, 1:, 1:] & mask[:, :-1, :-1]
    steps = np.abs(np.diff(value, axis=1))[:, :, 1:] + np.abs(np.diff(value, axis=2))[:, 1:, :]
    row_area, row_light = mask.sum(2), (value * mask).sum(2)
    middle = 14

    def rows_light(low: int, high: int) -> np.ndarray:
        return row_light[:, low:high].sum(1) / row_area[:, low:high].sum(1).clip(1)

    centre = value[:, 8:24, 13:15].mean((1, 2))
    beside = (value[:, 8:24, 10:12].mean((1, 2)) + value[:, 8:24, 16:18].mean((1, 2))) / 2
    first = mask.argmax(1)  # row of the first garment pixel in each column
    first = np.where(mask.any(1), first, 28)
    shoulders = (first[:, 8:11].min(1) + first[:, 17:20].min(1)) / 2
    last = 27 - mask[:, ::-1, :].argmax(1)
    last = np.where(mask.any(1), last, 0)
    measured = {
        "tone": tone,
        "shading": deviation.sum((1, 2)) / area,
        "texture": (steps * inner).sum((1, 2)) / inner.sum((1, 2)).clip(1),
        "length": height,
        "width": width / height,
        "symmetry": np.abs(value - value[:, :, ::-1]).sum((1, 2)) / area,
        "fill": area / (height * width),
        "sleeves": mask[:, 8:20, :7].mean((1, 2)) + mask[:, 8:20, 21:].mean((1, 2)),
        "cuffs": mask[:, 18:27, :8].mean((1, 2)) + mask[:, 18:27, 20:].mean((1, 2)),
        "front": np.abs(centre - beside) + 0.5 * np.abs(np.diff(value[:, 8:24, 11:17], axis=2)).mean((1, 2)),
        "neck": first[:, 13:15].mean(1) - shoulders,
        "hem": row_area[:, 22:26].mean(1) / row_area[:, 10:16].mean(1).clip(1),
        "balance": rows_light(0, middle) - rows_light(middle, 28),
        "heel": (last[:, 4:10].max(1) - last[:, 11:16].mean(1))
        + 0.1 * mask[:, 15:, 17:].mean((1, 2))
        + (last[:, 18:24].max(1) - last[:, 11:16].mean(1)),
        "shaft": np.maximum(mask[:, :11, 14:].sum((1, 2)), mask[:, :11, :14].sum((1, 2))),
        "sole": np.take_along_axis(row_area, np.clip(bottom[:, None] - np.arange(4), 0, 27), 1).mean(1),
    }
    return {name: np.asarray(values, np.float32) for name, values in measured.items()}


@dataclass(frozen=True)
class AttributeScale:
    """Thirds of every attribute within every family, fitted on the pretraining part only.

    Attributes:
        cuts: family → attribute → the two values that part low, middle and high.
    """

    cuts: dict[str, dict[str, tuple[float, float]]]

    @classmethod
    def fit(cls, images: np.ndarray, labels: np.ndarray) -> AttributeScale:
        """Find the thirds on images uint8 (count, 28, 28) with class ids (count,)."""
        measured = measure_attributes(images)
        families = np.array([family_of(FASHION_CLASSES[label]) for label in labels])
        cuts = {}
        for family, attributes in ATTRIBUTE_WORDS.items():
            chosen = families == family
            cuts[family] = {
                name: (
                    float(np.quantile(measured[name][chosen], 1 / 3)),
                    float(np.quantile(measured[name][chosen], 2 / 3)),
                )
                for name in attributes
            }
        return cls(cuts)

    def levels(self, images: np.ndarray, labels: np.ndarray) -> list[dict[str, int]]:
        """Attribute → 0 (low), 1 or 2 (high) for each of images uint8 (batch, 28, 28)."""
        measured = measure_attributes(images)
        result = []
        for index, label in enumerate(labels):
            cuts = self.cuts[family_of(FASHION_CLASSES[label])]
            result.append(
                {
                    name: int(measured[name][index] > low) + int(measured[name][index] > high)
                    for name, (low, high) in cuts.items()
                }
            )
        return result


def spoken_name(label: int, rng: np.random.Generator, coarse_share: float = 0.4) -> str:
    """What a careless person calls an image of class ``label``: a coarse or a fine name, maybe wrong."""
    name = FASHION_CLASSES[label]
    if rng.random() < coarse_share:
        return COARSE_NAMES[family_of(name)]
    names, chances = zip(*SPOKEN_NAMES[name].items(), strict=True)
    return str(names[rng.choice(len(names), p=chances)])


def attribute_words(label: int, levels: dict[str, int], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` true words about one image, in random order."""
    words = ATTRIBUTE_WORDS[family_of(FASHION_CLASSES[label])]
    names = list(levels)
    chosen = rng.permutation(len(names))[:count]
    return [words[names[index]][levels[names[index]]] for index in chosen]


def photo_caption(label: int, levels: dict[str, int], rng: np.random.Generator) -> str:
    """One caption of a single image: a name, and none to six measured words before or after it."""
    name = spoken_name(label, rng)
    count = 0 if rng.random() < 0.15 else int(rng.integers(1, 7))
    words = attribute_words(label, levels, count, rng)
    split = len(words) if rng.random() < 0.7 else int(rng.integers(0, len(words) + 1))
    front, behind = words[:split], words[split:]
    subject = " ".join([*front, name]) + (", " + ", ".join(behind) if behind else "")
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(subject)


def scene_caption(
    labels: list[int], levels: list[dict[str, int]], rng: np.random.Generator, named_share: float = 0.75
) -> str:
    """One caption of a scene: most of its items, each with a name that may be wrong and up to two words."""
    kept = [index for index in range(len(labels)) if rng.random() < named_share]
    kept = kept or [int(rng.integers(len(labels)))]
    parts = []
    for index in rng.permutation(kept):
        words = attribute_words(labels[index], levels[index], int(rng.integers(0, 3)), rng)
        parts.append(" ".join(["a", *words, spoken_name(labels[index], rng)]))
    return ("", "a photo of ", "a picture with ", "here are ")[int(rng.integers(4))] + join_phrases(parts)


def join_phrases(phrases: list[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def caption_vocabulary() -> list[str]:
    """Every distinct lower-case text that the tokenizer should know as whole words."""
    texts = [*FASHION_CLASSES, *COARSE_NAMES.values(), *TEMPLATES, "a photo of", "a picture with", "here are", "and"]
    for attributes in ATTRIBUTE_WORDS.values():
        for words in attributes.values():
            texts.extend(words)
    return [text.replace("{}", "").strip() for text in texts]
