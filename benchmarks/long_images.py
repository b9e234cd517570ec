"""What three to one images should be fitted into a square by, and whether mirror images may be learned from.

    python benchmarks/long_images.py                          # hours
    python benchmarks/long_images.py --sets block --fits pad  # objects at the edge, as they are seen by default

Three sets that are made here, of 300 × 100 px or three garments wide:

- ``block``: grey with a bright block at the left or at the right edge, two classes, which a crop never sees;
- ``garment, anywhere``: bundled photographs of four kinds of garments on a black canvas, anywhere along it;
- ``garment, middle``: the same in the middle, where a crop is at its best.

Every setting of ``fit`` is learned with mirror images, without, and with what ``flip="auto"`` chooses. Exemplars of
garments are of the support pool, test images of the test set; no setting is chosen on what is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import benchmark_options, check_aim, make_result, publish
from PIL import Image

from gcpl_lab import GCPLClassifier, draw_episode, load_fashion
from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.data.framing import FITS
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.evaluation.mirroring import choose_mirroring
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

GARMENTS = ("t-shirt", "trousers", "bag", "ankle boot")
SHOTS, NUM_TEST = 16, 100

Labelled = tuple[list[Image.Image], np.ndarray]


def blocks(count: int, rng: np.random.Generator) -> Labelled:
    """Grey 300 × 100 images with a block of 40 px at one of the two ends, up to 10 px from it."""
    images, labels = [], np.arange(count) % 2
    for label in labels:
        pixels = np.clip(rng.normal(128, 6, (100, 300, 3)), 0, 255).astype(np.uint8)
        gap = int(rng.integers(0, 10))
        left = gap if label == 0 else 260 - gap
        pixels[30:70, left : left + 40] = 220
        images.append(Image.fromarray(pixels))
    return images, labels


def garments(pool: ImageSet, chosen: np.ndarray, rng: np.random.Generator, anywhere: bool) -> Labelled:
    """Garments on a black canvas three times as wide as they are."""
    images = []
    for garment in read_images([pool.images[index] for index in chosen]):
        canvas = Image.new("RGB", (3 * garment.width, garment.height))
        canvas.paste(garment, (int(rng.integers(0, 2 * garment.width + 1)) if anywhere else garment.width, 0))
        images.append(canvas)
    return images, pool.labels[chosen]


def make_sets(seed: int) -> dict[str, tuple[Labelled, Labelled, tuple[str, ...]]]:
    """Exemplars, test images and class names of each set."""
    rng = np.random.default_rng([seed, 41])
    support, test = (load_fashion(part).only(GARMENTS) for part in ("support", "test"))
    exemplars, judged = draw_episode(support, SHOTS, seed), rng.permutation(len(test))[:NUM_TEST]
    found = {"block": (blocks(2 * SHOTS, rng), blocks(NUM_TEST, rng), ("one end", "other end"))}
    for title, anywhere in (("garment, anywhere", True), ("garment, middle", False)):
        sides = [garments(*part, rng, anywhere) for part in ((support, exemplars), (test, judged))]
        found[title] = (sides[0], sides[1], GARMENTS)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "long_images", preset=None)
    parser.add_argument("--seeds", type=int, default=3, help="draws")
    parser.add_argument("--methods", default="probe,gcpl", help="probe, gcpl or both, joined by a comma")
    parser.add_argument("--sets", default="", help="only those whose names begin so")
    parser.add_argument("--train-steps", type=int, default=240, help="updates of class prompts")
    parser.add_argument("--fits", default=",".join(FITS), help="some of these")
    options = parser.parse_args()
    clip, diffusion = FrozenCLIP.load("tiny"), FrozenDiffusion.load("tiny")

    def probe(shown: Labelled, judged: Labelled, names: tuple[str, ...], fit: str, flip: Any, seed: int) -> np.ndarray:
        views, labels = encode_views(clip, shown[0], fit=fit), torch.from_numpy(shown[1])
        views = views if choose_mirroring(flip, views, labels, names).flip else views[:1]
        scores = LinearProbe(views, labels, seed).scores(encode_views(clip, judged[0], False, fit)[0])
        return scores.argmax(1).numpy()

    def gcpl(shown: Labelled, judged: Labelled, names: tuple[str, ...], fit: str, flip: Any, seed: int) -> np.ndarray:
        settings = {"num_steps": options.train_steps, "fit": fit, "flip": flip, "seed": seed}
        return GCPLClassifier(diffusion=diffusion, **settings).fit(*shown, names).predict(judged[0])

    methods: dict[str, Callable[..., np.ndarray]] = {"probe": probe, "gcpl": gcpl}
    rows: dict[tuple[str, str, str, str], list[bool]] = {}
    for seed in range(options.seeds):
        chosen = {title: found for title, found in make_sets(seed).items() if title.startswith(options.sets)}
        for title, (shown, judged, names) in chosen.items():
            for method in options.methods.split(","):
                for fit in options.fits.split(","):
                    for flip in ("auto", False, True) if method == "probe" else ("auto", True):
                        if method == "gcpl" and flip is True and (title != "block" or fit != "pad"):
                            continue  # hours for what the probe says
                        right = methods[method](shown, judged, names, fit, flip, seed) == judged[1]
                        rows.setdefault((title, method, fit, str(flip)), []).extend(right.tolist())
                        told = f"seed {seed}, {title}: {method}, fit={fit}, flip={flip}: {right.mean():.0%}"
                        sys.stderr.write(told + "\n")
    shares = {key: share_with_interval(sum(right), len(right)) for key, right in rows.items()}
    found = [
        {"what": f"{title}: {method}, fit={fit}, flip={flip}", "accuracy": one.value, "low": one.low, "high": one.high}
        for (title, method, fit, flip), one in shares.items()
    ]
    edge = {method: shares.get(("block", method, "pad", "auto")) for method in methods}
    aims = [
        check_aim(f"accuracy on objects at the edge, {method} as it is by default", share.value, least=0.9)
        for method, share in edge.items()
        if share
    ]
    facts = {"seeds": options.seeds, "shots": SHOTS, "test_images": NUM_TEST, "train_steps": options.train_steps}
    result = make_result("long_images", found, 1, aims=aims, **facts)
    publish(result, "Accuracy on three to one images", options.output)


if __name__ == "__main__":
    main()
