"""Measure the tiny pair and write its card: what it was trained on, how well it works, and where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.evaluation.metrics import accuracy, accuracy_within_family, confusion_matrix
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import DiffusionClassifier, spaced_timesteps
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import Preset
from gcpl_lab.storage import read_json, write_json, write_text
from tools.captions import SPOKEN_NAMES, AttributeScale, photo_caption
from tools.raw_fashion import PRETRAIN_PART, SUPPORT_PART, RawFashion, family_of, read_raw_fashion
from tools.samples import bundled_images
from tools.scenes import compose_scene

NUM_TEST = 1000
NUM_SCENES = 300
NUM_DENOISED = 300


NAMES_MADE_WORSE = """\
An earlier pair had captions that were less wrong. Its card, measured
on the first 1,000 official test photographs (51 of the 500 bundled ones are among them), gave zero-shot CLIP 65.1 %,
zero-shot diffusion 74.3 % (on 300, 14 of them bundled) and a linear probe 71.6 %. The names were found too good for
teaching, the captions were made more wrong (a pullover is called one in 15 % instead of 40 %), and the pair was trained
anew: 58.3 %, 63.3 % and 73.9 % on the same photographs. So the distance between names and learned prompts on the
bundled set is partly made, and "nothing was chosen on these photographs" holds for prompts and baselines, not for the
frozen pair."""
"""What a reader of any comparison with the names has to know; it does not follow from what is measured here."""


def write_card(target: str | Path, raw_folder: str | Path, evidence_range: tuple[float, float] = (0.0, 1.0)) -> Path:
    """Measure the pair in ``target`` on images it never saw, and write ``README.md`` and ``card.json`` there.

    None of them is in ``data_samples``: what is reported there must not have been looked at here.

    Args:
        target: Holds ``diffusion/``, ``clip/`` and ``pretraining.json``.
        raw_folder: The published Fashion-MNIST files.
        evidence_range: Part of the noise schedule in which the zero-shot diffusion classifier looks.
    """
    target = Path(target)
    raw = read_raw_fashion(raw_folder)
    source = f"local-dir:{target / 'clip'}"
    preset = Preset("tiny", str(target / "diffusion"), source, "", "Apache-2.0", 0, evidence_range)
    diffusion, clip = FrozenDiffusion.load(preset), FrozenCLIP.load(preset)
    judged = np.setdiff1d(np.arange(len(raw.test_labels)), list(bundled_images("test")))
    raw = replace(raw, test_images=raw.test_images[judged], test_labels=raw.test_labels[judged])
    images = [Image.fromarray(image).convert("RGB") for image in raw.test_images[:NUM_TEST]]
    labels = raw.test_labels[:NUM_TEST]
    measured: dict[str, Any] = {
        "vae": _measure_vae(diffusion, images, target),
        "clip": _measure_clip(clip, raw, images, labels),
        "denoiser": _measure_denoiser(diffusion, raw, images[:NUM_DENOISED], labels[:NUM_DENOISED]),
    }
    _draw_generated(diffusion, target)
    write_json(target / "card.json", measured)
    return write_text(target / "README.md", _card_text(measured, read_json(target / "pretraining.json"), target))


def _grid(rows: list[list[np.ndarray]], scale: int = 2) -> Image.Image:
    """Rows of images (height, width, 3), two pixels apart on white."""
    padded = [[np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=255) for p in row] for row in rows]
    whole = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in padded], axis=0))
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST)


def _measure_vae(diffusion: FrozenDiffusion, images: list[Image.Image], target: Path) -> dict[str, float]:
    pixels = diffusion.preprocess(images)
    means, log_variances = diffusion.encode_moments(pixels)
    decoded = [np.asarray(p, np.float32) for p in diffusion.decode(diffusion.scale_latents(means))]
    original = ((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round()
    difference = (np.stack(decoded) - original) / 255
    rows = [[original[i].astype(np.uint8) for i in range(16)], [decoded[i].astype(np.uint8) for i in range(16)]]
    (target / "card").mkdir(parents=True, exist_ok=True)
    _grid(rows).save(target / "card" / "vae.png")
    return {
        "mean_absolute_error": float(np.abs(difference).mean()),
        "psnr_db": float(-10 * np.log10((difference**2).mean())),
        "latent_spread": float(diffusion.scale_latents(means).std()),
        "posterior_deviation": float(diffusion.scale_latents((0.5 * log_variances).exp()).mean()),
    }


def _measure_clip(clip: FrozenCLIP, raw: RawFashion, images: list[Image.Image], labels: np.ndarray) -> dict[str, Any]:
    features = clip.encode_images(images)
    scores = ZeroShotCLIP(clip, FASHION_CLASSES).scores(features).numpy()
    matrix = confusion_matrix(scores, labels)
    family = np.array([list(FASHION_FAMILIES).index(family_of(name)) for name in FASHION_CLASSES])
    wrong = scores.argmax(1) != labels
    inside = family[scores.argmax(1)[wrong]] == family[labels[wrong]]
    probes = []
    free = np.setdiff1d(np.arange(SUPPORT_PART.start, SUPPORT_PART.stop), list(bundled_images("train")))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        part = raw.train_labels[free]
        chosen = np.concatenate([rng.choice(free[part == c], 16, replace=False) for c in range(10)])
        support = [Image.fromarray(raw.train_images[i]).convert("RGB") for i in chosen]
        probe = LinearProbe(encode_views(clip, support), torch.from_numpy(raw.train_labels[chosen]), seed)
        probes.append(accuracy(probe.scores(features).numpy(), labels))
    return {
        "zero_shot_accuracy": accuracy(scores, labels),
        "share_of_mistakes_inside_families": float(inside.mean()) if wrong.any() else 1.0,
        "zero_shot_confusion": matrix.tolist(),
        "linear_probe_16_shots": {"mean": float(np.mean(probes)), "standard_deviation": float(np.std(probes, ddof=1))},
        "zero_shot_map_on_scenes": _scene_map(clip, raw),
        "logit_scale": clip.logit_scale,
    }


def _scene_map(clip: FrozenCLIP, raw: RawFashion) -> float:
    """Mean average precision of the class names on composed scenes of one to five test images."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    scenes, targets = [], np.zeros((NUM_SCENES, len(FASHION_CLASSES)), int)
    for index in range(NUM_SCENES):
        items = rng.integers(0, len(raw.test_images), int(rng.integers(1, 6)))
        scenes.append(Image.fromarray(compose_scene([raw.test_images[i] for i in items], rng)).convert("RGB"))
        targets[index, raw.test_labels[items]] = 1
    scores = ZeroShotCLIP(clip, FASHION_CLASSES).scores(clip.encode_images(scenes)).numpy()
    return float(np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(targets.shape[1])]))


def _measure_denoiser(
    diffusion: FrozenDiffusion, raw: RawFashion, images: list[Image.Image], labels: np.ndarray
) -> dict[str, Any]:
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(images))[0])
    hidden = diffusion.encode_texts([f"a photo of a {name}" for name in FASHION_CLASSES])
    classifier = DiffusionClassifier(diffusion, hidden, timestep_range=diffusion.evidence_range)
    found = classifier.exact(latents, 12).errors
    scores = class_scores(found, "relative")
    part = slice(PRETRAIN_PART.start, PRETRAIN_PART.stop)
    scale = AttributeScale.fit(raw.train_images[part], raw.train_labels[part])
    levels = scale.levels(raw.test_images[: len(labels)], labels)
    rng = np.random.default_rng(0)
    own = [photo_caption(int(label), level, rng) for label, level in zip(labels, levels, strict=True)]
    shifts = np.array([rng.choice(np.flatnonzero(labels != label)) for label in labels])
    captions = {
        "own_caption": diffusion.encode_texts(own),
        "caption_of_another_class": diffusion.encode_texts([own[i] for i in shifts]),
        "own_name": hidden[torch.from_numpy(labels)],
        "another_name": hidden[torch.from_numpy(labels[shifts])],
    }
    timesteps = spaced_timesteps(diffusion.num_timesteps, 10)
    errors = {name: _errors_by_timestep(diffusion, latents, states, timesteps) for name, states in captions.items()}
    return {
        "zero_shot_accuracy": accuracy(scores, labels),
        "zero_shot_accuracy_within_family": accuracy_within_family(scores, labels, FASHION_CLASSES, FASHION_FAMILIES),
        "zero_shot_accuracy_absolute": accuracy(class_scores(found, "absolute"), labels),
        "timesteps": timesteps.tolist(),
        "error": errors["own_caption"],
        "caption_gap": _relative_gap(errors["caption_of_another_class"], errors["own_caption"]),
        "name_gap": _relative_gap(errors["another_name"], errors["own_name"]),
    }


def _relative_gap(wrong: list[float], right: list[float]) -> list[float]:
    return [(b - a) / a for a, b in zip(right, wrong, strict=True)]


@torch.no_grad()
def _errors_by_timestep(diffusion: FrozenDiffusion, latents: Tensor, hidden: Tensor, timesteps: Tensor) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    errors = []
    for timestep in timesteps:
        noise = torch.randn(latents.shape, generator=generator)
        steps = timestep.repeat(len(latents))
        predicted = diffusion.predict_noise(diffusion.add_noise(latents, noise, steps), steps, hidden)
        errors.append(float((predicted - noise).square().mean()))
    return errors


def _draw_generated(diffusion: FrozenDiffusion, target: Path, each: int = 6) -> None:
    prompts = [f"a photo of a {name}" for name in FASHION_CLASSES]
    hidden = diffusion.encode_texts(prompts).repeat_interleave(each, 0)
    images = [np.asarray(image) for image in diffusion.generate(hidden, num_steps=40, guidance=4.0, seed=1)]
    rows = [images[start : start + each] for start in range(0, len(images), each)]
    columns = [[row[index] for row in rows] for index in range(each)]
    _grid(columns).save(target / "card" / "generated.png")


def _card_text(measured: dict[str, Any], pretraining: dict[str, Any], target: Path) -> str:
    vae, clip, denoiser = measured["vae"], measured["clip"], measured["denoiser"]
    config, curves = pretraining["config"], pretraining["curves"]
    size = sum(file.stat().st_size for file in target.rglob("*.safetensors")) / 1e6
    gaps = "\n".join(
        f"| {t} | {e:.3f} | {100 * c:+.1f} % | {100 * n:+.1f} % |"
        for t, e, c, n in zip(
            denoiser["timesteps"], denoiser["error"], denoiser["caption_gap"], denoiser["name_gap"], strict=True
        )
    )
    spoken = "\n".join(
        f"| {name} | " + ", ".join(f"{word} {share:.0%}" for word, share in words.items()) + " |"
        for name, words in SPOKEN_NAMES.items()
    )
    confusion = "\n".join(
        f"| {name} | " + " | ".join(str(value) for value in row) + " |"
        for name, row in zip(FASHION_CLASSES, clip["zero_shot_confusion"], strict=True)
    )
    ends = {
        name: f"{curve[0]['loss']:.3f} at step {curve[0]['step']} to {curve[-1]['loss']:.3f} at step "
        f"{curve[-1]['step']}"
        for name, curve in curves.items()
    }
    models = {
        "vae": ("VAE", "`AutoencoderKL`, 16/32/64 channels, 3 × 32 × 32 to 4 × 8 × 8"),
        "clip": ("CLIP", "ViT 5 × 160, patches of 8; causal text transformer 4 × 128, 32 positions"),
        "denoiser": ("denoiser", "`UNet2DConditionModel` 64/128, prompt heard at 4 × 4, epsilon prediction"),
    }
    stages = "\n".join(
        f"| {title} | {model} | {config[key]['num_steps']} × {config[key]['batch_size']} | {ends[key]} |"
        for key, (title, model) in models.items()
    )
    probe = clip["linear_probe_16_shots"]
    return f"""# The tiny pair

Two frozen models that ship with gcpl_lab so that everything runs on a laptop without a network: a CLIP in
open_clip's own format (`clip/`) and a Stable Diffusion pipeline in the diffusers format (`diffusion/`), together
{size:.1f} MB of weights, float32. The pipeline's text encoder is that same CLIP's text tower. `gcpl-lab pretrain`
rebuilds both from the raw photographs; every number below was measured by it (`card.json`) on {NUM_TEST} official test
photographs (the denoiser on the first {NUM_DENOISED} of them) that no training saw and that are in none of the bundled
sets: neither test photographs nor parts of test scenes. The probe's exemplars are not bundled either.

They are teaching models for 28-pixel photographs of ten kinds of garments. Do not use them for anything else.

## Data and captions

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT). Training images {PRETRAIN_PART.start} to {PRETRAIN_PART.stop - 1}
train these models; exemplars and training scenes come from {SUPPORT_PART.start} to {SUPPORT_PART.stop - 1}; test
photographs are the official ones. Captions imitate the web: in 40 % a coarse name (top, shoe), else a fine name
that is often wrong within its family, and none to six words about what was measured in the picture (tone, sleeves,
front, ...), which are always true. What a photograph of each class is called when a fine name is used:

| true class | called |
| --- | --- |
{spoken}

**The names were made worse on the way.** {NAMES_MADE_WORSE}

CLIP sees single photographs and composed scenes of one to five items, half and half, at 64 px; the VAE and the
denoiser see single photographs at 32 px. Mirror images are used throughout. The denoiser gets an empty caption
in one case of ten.

## Architecture and training

| stage | model | updates × batch | loss (mean of 20 updates) |
| --- | --- | --- | --- |
{stages}

Curves: `pretraining.json`.

## VAE

Mean absolute error {vae["mean_absolute_error"]:.4f} of the grey range, PSNR {vae["psnr_db"]:.1f} dB. Above the
photographs, below what the VAE makes of them:

![reconstructions](card/vae.png)

## CLIP

- Zero-shot top-1 on the ten fine names: {clip["zero_shot_accuracy"]:.1%};
  {clip["share_of_mistakes_inside_families"]:.0%} of the mistakes are inside the family.
- Linear probe on the image features of 16 photographs a class and their mirror images:
  {probe["mean"]:.1%} ± {probe["standard_deviation"]:.1%} (5 draws).
- Zero-shot mean average precision on {NUM_SCENES} composed scenes of test photographs:
  {clip["zero_shot_map_on_scenes"]:.3f}.

Zero-shot confusion, true classes in rows, predictions in the same order:

| | {" | ".join(FASHION_CLASSES)} |
| --- |{" --- |" * len(FASHION_CLASSES)}
{confusion}

## Denoiser

Zero-shot diffusion classifier on the ten fine names, 12 (t, ε) a photograph: {denoiser["zero_shot_accuracy"]:.1%}
(chance 10 %), {denoiser["zero_shot_accuracy_within_family"]:.1%} among look-alikes, with relative errors;
{denoiser["zero_shot_accuracy_absolute"]:.1%} with the published mean of absolute ones. Does it listen to its prompt?
The error under the right caption, and how much larger it is under the caption of a photograph of another class,
and under another class's bare name:

| timestep | error, own caption | gap, other caption | gap, other name |
| --- | --- | --- | --- |
{gaps}

Pictures drawn from "a photo of a …" for {", ".join(FASHION_CLASSES)} (columns; DDIM, 40 steps, guidance 4):

![generated](card/generated.png)
"""
