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
from gcpl_lab.evaluation.trust import share_of

Words = Mapping[str, Sequence[str]]
"""Class name to the terms that mean it, its own name first."""


def check_captions(images: MultiLabelSet, words: Words, corrected: Path) -> dict[str, Any]:
    """Whether captions name what the labels say: coverage, contradictions, empty, copied and short ones.

    Args:
        images: With captions; their own list is left as it is.
        words: The terms that name each class.
        corrected: A list to write: captions with the trade's words explained, and notes on what contradicts the labels.

    Returns:
        Counts, and ``by_class`` for each class the share of its captioned images whose captions name it, and the number
        of captions that name it where it is absent.
    """
    texts = [" ".join((caption or "").lower().split()) for caption in images.captions]
    named = np.array([[_names(text, words[name]) for name in images.class_names] for text in texts], bool)
    present, there = images.targets.astype(bool), np.array([bool(text) for text in texts])
    wrong, by_class, rows = named & ~present, [], []
    for label, name in enumerate(images.class_names):
        hits = named[present[:, label] & there, label]
        share = share_of(hits) if len(hits) else None
        by_class.append({"class": name, "covered": share, "contradictions": int(wrong[:, label].sum())})
    for place, caption in enumerate(name_classes(images.captions, words)):
        labels, absent = (np.array(images.class_names)[mask[place]] for mask in (present, wrong))
        note = f"names {' and '.join(absent)}, which the labels do not" if len(absent) else ""
        row = {"file_name": images.images[place].name, "labels": ";".join(labels), "caption": caption or ""}
        rows.append({**row, "note": note if caption else "no caption"})
    write_csv(corrected, rows)
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
