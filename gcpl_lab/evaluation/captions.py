"""Are captions fit to learn from? What they name against what labels say, with the trade's own words for classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.sets import CAPTION_SEPARATOR, MultiLabelSet
from gcpl_lab.data.tables import read_csv, write_csv
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.trust import share_with_interval

Words = Mapping[str, Sequence[str]]
"""Class name to the terms that mean it, its own name first."""


def check_captions(images: MultiLabelSet, words: Words) -> dict[str, Any]:
    """Whether captions name what the labels say: coverage, contradictions, empty, copied and short ones.

    ``by_class`` has for each class the share of its captioned images whose captions name it by one of its ``words``,
    and the number of captions that name it where it is absent.
    """
    texts = [" ".join((caption or "").lower().split()) for caption in images.captions]
    named = np.array([[_names(text, words[name]) for name in images.class_names] for text in texts], bool)
    present, there = images.targets.astype(bool), np.array([bool(text) for text in texts])
    wrong, by_class = named & ~present, []
    for label, name in enumerate(images.class_names):
        shown = present[:, label] & there
        share = share_with_interval(int(named[shown, label].sum()), int(shown.sum()))._asdict() if shown.any() else None
        by_class.append({"class": name, "covered": share, "contradictions": int(wrong[:, label].sum())})
    plain = [text for text in texts if text]
    different = set(plain)
    return {
        "num_images": len(images),
        "empty": len(texts) - len(plain),
        "copied": len(plain) - len(different),
        "near_copies": len(different) - len({frozenset(text.split()) for text in different}),
        "median_words": float(np.median([len(text.split()) for text in plain] or [0])),
        "contradictions": int(wrong.any(axis=1).sum()),
        "by_class": by_class,
    }


def write_corrected(images: MultiLabelSet, words: Words, path: Path) -> Path:
    """The list of images with the trade's words explained in their captions, and a note on what contradicts its labels.

    It stands beside the original, which is left as it is.
    """
    rows = []
    for path_of, row, caption in zip(images.images, images.targets, name_classes(images.captions, words), strict=True):
        labels = [name for name, has in zip(images.class_names, row, strict=True) if has]
        wrong = [name for name in images.class_names if name not in labels and _names(caption or "", words[name])]
        note = f"names {' and '.join(wrong)}, which the labels do not" if wrong else "" if caption else "no caption"
        entry = {"file_name": path_of.name, "labels": ";".join(labels), "caption": caption or "", "note": note}
        rows.append(entry)
    return write_csv(path, rows)


def _names(text: str, terms: Sequence[str]) -> bool:
    """Whether one of the terms stands in a text as whole words, in the singular or plural."""
    return any(re.search(rf"(?<!\w){re.escape(term)}(?:s|es)?(?!\w)", text, re.IGNORECASE) for term in terms)


def read_words(file: Path | None, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Class name to its terms, from a CSV with the columns term and class; every class has at least its own name."""
    words = {name: [name] for name in class_names}
    header, rows = read_csv(file) if file else (["term", "class"], [])
    if not {"term", "class"} <= set(header):
        raise DataError(f"{file}: its columns are {', '.join(header)}; expected term and class")
    for line, row in rows:
        if row["class"] not in words or not row["term"].strip():
            expected = f"expected a word, and one of {', '.join(class_names)}"
            raise DataError(f"{file}, line {line}: term {row['term']!r} of class {row['class']!r}; {expected}")
        words[row["class"]].append(row["term"].strip())
    return words


def prompt_names(words: Words) -> tuple[str, ...]:
    """What class prompts are called: the class, and up to two of the trade's words for it."""
    return tuple(", ".join(terms[:3]) for terms in words.values())


def name_classes(captions: Sequence[str | None], words: Words) -> list[str | None]:
    """Captions in which the trade's terms are followed by the class that they mean, which the caption loss compares."""
    found: list[str | None] = []
    for caption in captions:
        parts = caption.split(CAPTION_SEPARATOR) if caption else []
        for place, part in enumerate(parts):
            meant = [name for name, terms in words.items() if _names(part, terms[1:]) and not _names(part, [name])]
            parts[place] = ", ".join([part, *meant])
        found.append(CAPTION_SEPARATOR.join(parts) or None)
    return found
