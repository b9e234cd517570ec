"""Multi-label experiments: every method on the same split, with what is frozen computed once; the ablation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.baselines.clip_features import ZeroShotCLIP
from gcpl_lab.baselines.multilabel import OneVsRestProbe
from gcpl_lab.data.multilabel import MultiLabelSet, replace_captions, split_validation
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.evaluation.compare import Trial, run_trials, summarise
from gcpl_lab.evaluation.multilabel import average_precisions, choose_thresholds, multilabel_report
from gcpl_lab.lmpt.estimator import LMPTClassifier, encode_views, load_clip, measure_scores, sigmoid
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.storage import write_json
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_machine, describe_versions

MULTILABEL_TITLES = {
    "zero_shot_clip": "Zero-shot CLIP",
    "linear_probe": "Linear probe",
    "coop_bce": "CoOp + BCE",
    "coop_asl": "CoOp + ASL",
    "coop_db": "CoOp + DB",
    "lmpt": "LMPT",
    "lmpt_published_loss": "LMPT, published loss",
    "lmpt_published": "LMPT, published settings",
}
MULTILABEL_METHODS = tuple(MULTILABEL_TITLES)

COOP_LOSSES: dict[str, dict[str, Any]] = {
    "coop_bce": {"classification": "binary_cross_entropy"},
    "coop_asl": {"classification": "asymmetric"},
    "coop_db": {"classification": "distribution_balanced"},
}
"""CoOp is LMPT without captions: all other settings are the same, so that pairs differ in one thing."""

PUBLISHED_LOSS: dict[str, Any] = {
    "classification": "distribution_balanced",
    "mix": 0.5,
    "contrast_reduction": "mean",
    "negative_scale": 5.0,
    "mu": 0.3,
    "margin": 0.2,
    "scale": "clip",
    "reweight_gamma": 2.0,
}
"""LMPT's loss with the authors' settings for VOC-LT, on CLIP's own scale; prompts, reading and training are ours."""

PUBLISHED: dict[str, Any] = {
    **PUBLISHED_LOSS,
    "class_aware_margin": True,
    "reweight": True,
    "rebalance": True,
    "negative_tolerant": True,
    "focal": True,
    "reading": "token",
    "token_offset": 2,
    "position_hinge": "sum",
    "num_context": 16,
    "class_specific": True,
    "class_position": "end",
    "initial_words": "",
    "ending": ".",
    "optimizer": "sgd",
    "learning_rate": 5e-4,
    "schedule": "constant",
    "batch_size": 64,
    "num_epochs": 50,
    "keep": "last",
    "patience": 0,
}
"""The authors' whole command for VOC-LT, as far as this package goes.

What still differs: their sign of the embedding loss is the other one; they lower the rate where the mAP on the test
set stands still, and keep the checkpoint that is best there, while here the rate is constant and the prompts at the
end are kept; their SGD has a weight decay of 1e-4, ours none; see also :class:`~gcpl_lab.lmpt.objective.LMPT`.
"""

_OVERRIDES: dict[str, dict[str, Any]] = {
    **{name: {**loss, "mix": 1.0} for name, loss in COOP_LOSSES.items()},
    "lmpt": {},
    "lmpt_published_loss": PUBLISHED_LOSS,
    "lmpt_published": PUBLISHED,
}
"""What each prompt method changes in the experiment's settings."""

SCORES = ("map", "map_head", "map_medium", "map_tail")
NUM_PROBE_PARTS = 10
"""Parts of the training images that choose the linear probe's strength: those that LMPT's settings are chosen on."""

PART_SHARE = 0.25

PART_SEED = 1000
"""Keeps the splits that settings are chosen on apart from the validation splits of the reported seeds."""

NOISE_SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class MultiLabelOutcome:
    """One method with one seed.

    Attributes:
        method: Its name.
        seed: Of the validation split, the starting prompts and the batches.
        logits: float (test image, class), comparable within a class.
        probabilities: (test image, class), sigmoids scaled on validation images.
        thresholds: (class,), chosen there too.
        row: What ``results.json`` holds.
        model: The fitted classifier of a prompt method, else None.
    """

    method: str
    seed: int
    logits: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    row: dict[str, Any]
    model: LMPTClassifier | None = None


class MultiLabelExperiment:
    """All methods on one training and one test set.

    For each seed, part of the training images is held out; it chooses the epoch, the scale of probabilities and the
    thresholds of every method alike; the probe's strength is chosen on the parts that LMPT's settings were. With
    ``refit`` what is trained then learns once more, from all of them. With ``flip`` it learns from mirror images too.
    The test set is only measured on.
    """

    def __init__(
        self,
        train: MultiLabelSet,
        test: MultiLabelSet,
        *,
        preset: str = "tiny",
        settings: Mapping[str, Any] | None = None,
        clip: FrozenCLIP | None = None,
        on_step: Callable[[str, StepRecord, int], None] | None = None,
    ) -> None:
        """Take the data; the model loads and pictures are encoded when a method first needs them.

        Args:
            train: With captions where there are any.
            test: Same classes in the same order.
            preset: The frozen pair.
            settings: Fields of :class:`~gcpl_lab.lmpt.settings.LMPTConfig` for the prompt methods.
            clip: A loaded model to share.
            on_step: Called with (method, record, number of steps) after every update, for progress.
        """
        if train.class_names != test.class_names:
            raise DataError(
                f"training has the classes {train.class_names} and test {test.class_names}; they must be the same"
            )
        self.train, self.test = train, test
        self.config = LMPTConfig.from_dict({**(settings or {}), "preset": preset})
        self._clip = clip
        self.on_step = on_step or (lambda *_event: None)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the data and the settings, without models, listeners or what was computed."""
        make = partial(MultiLabelExperiment, preset=self.config.preset, settings=self.config.as_dict())
        return make, (self.train, self.test)

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen CLIP."""
        return self._clip or load_clip(self.config)

    @cached_property
    def views(self) -> Tensor:
        """Features of the training images and their mirror images, (2, image, feature)."""
        return encode_views(self.clip, self.train.images)

    @cached_property
    def test_features(self) -> Tensor:
        """Features of the test images, (image, feature)."""
        return encode_views(self.clip, self.test.images, flip=False)[0]

    def run(
        self,
        method: str,
        seed: int,
        overrides: Mapping[str, Any] | None = None,
        captions: Sequence[str | None] | None = None,
    ) -> MultiLabelOutcome:
        """Learn one method and score the test images.

        Args:
            method: A name in ``MULTILABEL_METHODS``; with ``overrides``, any name for a variant of LMPT.
            seed: Of the validation split, the starting prompts and the batches.
            overrides: Settings of this run alone.
            captions: Instead of the training set's.
        """
        if overrides is None and method not in MULTILABEL_METHODS:
            raise ValueError(f"{method!r} is no method; expected one of {', '.join(MULTILABEL_METHODS)}")
        if overrides is None and method in ("zero_shot_clip", "linear_probe"):
            return self._run_frozen(method, seed)
        if overrides is None:
            overrides = _OVERRIDES[method]
        return self._run_prompts(method, seed, overrides, self.train.captions if captions is None else captions)

    def _run_prompts(
        self, method: str, seed: int, overrides: Mapping[str, Any], captions: Sequence[str | None]
    ) -> MultiLabelOutcome:
        settings = {**self.config.as_dict(), **overrides, "seed": seed}
        model = LMPTClassifier(clip=self.clip, **settings)
        views = self.views  # encoded before the clock starts
        began = time.perf_counter()
        train = self.train
        for record in model.learn(views, train.targets, train.class_names, captions, images=train.images):
            self.on_step(method, record, model.num_steps_)
        trained = time.perf_counter()
        logits = model.scores_of(self.test_features)
        return self._outcome(
            method, seed, logits, model.sigmoid_, model.thresholds_, trained - began, trained, model=model
        )

    def _run_frozen(self, method: str, seed: int) -> MultiLabelOutcome:
        views, targets, test = self.views, self.train.targets, self.test_features
        views = views if self.config.flip else views[:1]
        training, validation = split_validation(targets, self.config.validation_share, seed)
        held_out, wanted = views[0, torch.from_numpy(validation)], targets[validation]
        began = time.perf_counter()
        scorer: ZeroShotCLIP | OneVsRestProbe
        if method == "zero_shot_clip":
            scorer = ZeroShotCLIP(self.clip, self.train.class_names)
        else:
            scorer = OneVsRestProbe(views[:, torch.from_numpy(training)], targets[training], self.probe_strength)
        known = scorer.scores(held_out).double().numpy()
        scale_and_bias = fit_sigmoid(known, wanted)
        thresholds = choose_thresholds(sigmoid(known, scale_and_bias), wanted)
        if isinstance(scorer, OneVsRestProbe) and self.config.refit:  # as prompts do
            scorer = OneVsRestProbe(views, targets, self.probe_strength)
        trained = time.perf_counter()
        logits = scorer.scores(test).double().numpy()
        return self._outcome(method, seed, logits, scale_and_bias, thresholds, trained - began, trained)

    @cached_property
    def probe_strength(self) -> float:
        """The strength with the best mAP on parts of the training images, classes weighed as if even.

        It is chosen once for all seeds, like LMPT's settings: one part holds two or three images of a rare class, so
        that its favourite is left to chance.
        """
        targets, strengths = self.train.targets, OneVsRestProbe.STRENGTHS
        views = self.views if self.config.flip else self.views[:1]
        quality = np.zeros(len(strengths))
        for number in range(NUM_PROBE_PARTS):
            learned, judged = split_validation(targets, PART_SHARE, PART_SEED + number)
            for place, strength in enumerate(strengths):
                probe = OneVsRestProbe(views[:, torch.from_numpy(learned)], targets[learned], strength)
                scores = probe.scores(views[0, torch.from_numpy(judged)]).numpy()
                found = [value for value in average_precisions(scores, targets[judged], even=True) if value is not None]
                quality[place] += np.mean(found) if found else 0.0
        return strengths[int(quality.argmax())]

    def _outcome(
        self,
        method: str,
        seed: int,
        logits: np.ndarray,
        scale_and_bias: tuple[float, float],
        thresholds: np.ndarray,
        train_seconds: float,
        trained: float,
        model: LMPTClassifier | None = None,
    ) -> MultiLabelOutcome:
        measured = measure_scores(
            logits, scale_and_bias, thresholds, self.test.targets, self.train.class_counts(), self.test.class_names
        )
        row = {
            "name": method,
            "seed": seed,
            **measured,
            "train_seconds": train_seconds,
            "predict_seconds": time.perf_counter() - trained,
        }
        if model is not None:
            row["validation_map"] = model.validation_map_
        return MultiLabelOutcome(method, seed, logits, sigmoid(logits, scale_and_bias), thresholds, row, model)

    def part(self, number: int, share: float = PART_SHARE) -> MultiLabelExperiment:
        """An experiment on the training pictures alone: learn from some of them, measure on the others.

        Settings are chosen on such parts; the test pictures are not touched. What a method keeps for validation is
        a part of what it learns from here.

        Args:
            number: Of the split.
            share: What is measured on.
        """
        learned, measured = split_validation(self.train.targets, share, PART_SEED + number)
        part = MultiLabelExperiment(
            self.train.subset(learned),
            self.train.subset(measured),
            preset=self.config.preset,
            settings=self.config.as_dict(),
            clip=self.clip,
            on_step=self.on_step,
        )
        part.views = self.views[:, torch.from_numpy(learned)]
        part.test_features = self.views[0][torch.from_numpy(measured)]
        return part

    def fingerprint(self) -> str:
        """Whatever results depend on besides method and seed."""
        return repr((self.config.as_dict(), self.train.checksum, self.test.checksum, self.clip.checksum()))


# -------------------------------------------------------------------------------------- the comparison


def run_multilabel_comparison(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    methods: Sequence[str] = MULTILABEL_METHODS,
    seeds: Sequence[int] = tuple(range(20)),
    reference: str = "coop_bce",
    num_workers: int = 1,
    command: str = "",
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every (method, seed) that has no result yet and write ``results.json``.

    Args:
        folder: Results of single trials go to ``trials/`` in it.
        experiment: Data and settings.
        methods: Names in ``MULTILABEL_METHODS``.
        seeds: Of splits, starting prompts and batches; every method sees the same ones.
        reference: The method the others are paired with.
        num_workers: Seeds that are worked on side by side, in processes of their own.
        command: What is written down as having made the results.
        on_trial: Called with a line about the trial that comes next.

    Returns:
        The content of ``results.json``: data, machine, versions, methods (a row a trial), and a summary for each
        of ``map, map_head, map_medium, map_tail``.
    """

    def run(trial: Trial) -> dict[str, Any]:
        return experiment.run(trial.method, trial.seed).row

    trials = [Trial(method, 0, seed) for seed in seeds for method in methods]
    rows = run_trials(
        trials,
        run,
        Path(folder) / "trials",
        experiment.fingerprint(),
        num_workers=num_workers,
        on_trial=_telling(on_trial),
    )
    return _write_results(folder, experiment, rows, reference, command, {})


def _telling(on_trial: Callable[[str], None] | None, counted: str = "seed") -> Callable[[Trial], None] | None:
    """The same listener for trials."""
    return on_trial and (lambda trial: on_trial(f"{trial.method}, {counted} {trial.seed}"))


def run_tails(
    folder: str | Path,
    experiments: Sequence[MultiLabelExperiment],
    *,
    methods: Sequence[str] = ("zero_shot_clip", "linear_probe", "coop_bce", "lmpt"),
    seeds: Sequence[int] = tuple(range(4)),
    reference: str = "coop_bce",
    num_workers: int = 1,
    command: str = "",
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare methods on several drawn tails: differences between draws count, not those between seeds of one.

    Args:
        folder: Each tail's results go to a folder of its own in it.
        experiments: One a tail.
        methods: Names in ``MULTILABEL_METHODS``.
        seeds: Of each tail.
        reference: The method the others are paired with.
        num_workers: Seeds that are worked on side by side, in processes of their own.
        command: What is written down as having made the results.
        on_trial: Called with a line about the trial that comes next.

    Returns:
        ``tails`` (of each the class counts and the mean score of every method), ``reference``, and ``summary`` over
        tails: each is one number a method, the mean over its seeds.
    """
    tails, rows = [], []
    for number, experiment in enumerate(experiments):

        def tell(line: str, number: int = number) -> None:
            if on_trial:
                on_trial(f"tail {number}: {line}")

        result = run_multilabel_comparison(
            Path(folder) / f"tail_{number}",
            experiment,
            methods=methods,
            seeds=seeds,
            reference=reference,
            num_workers=num_workers,
            command=command,
            on_trial=tell,
        )
        scores = result["summary"]
        means = [
            {
                "method": method,
                "shots": 0,
                "seed": number,
                **{score: _mean_of(entries, method) for score, entries in scores.items()},
            }
            for method in methods
        ]
        rows += means
        counts = dict(zip(experiment.train.class_names, experiment.train.class_counts().tolist(), strict=True))
        tails.append(
            {
                "class_counts": counts,
                "train_checksum": experiment.train.checksum,
                "test_checksum": experiment.test.checksum,
                "methods": means,
            }
        )
    shared = [score for score in SCORES if all(score in row for row in rows)]
    summary = {score: summarise(rows, reference, score) for score in shared}
    result = {
        "command": command,
        "preset": experiments[0].config.preset,
        "config": experiments[0].config.as_dict(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "seeds": list(seeds),
        "reference": reference,
        "tails": tails,
        "summary": summary,
    }
    write_json(Path(folder) / "results.json", result)
    return result


def _mean_of(entries: Sequence[Mapping[str, Any]], method: str) -> float:
    return float(next(entry["mean"] for entry in entries if entry["method"] == method))


def _write_results(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    rows: list[dict[str, Any]],
    reference: str,
    command: str,
    extra: dict[str, Any],
) -> dict[str, Any]:
    train, test = experiment.train, experiment.test
    # A part of the tail without classes has no score, and no summary either.
    scores = [score for score in SCORES if all(row[score] is not None for row in rows)]
    result = {
        "command": command,
        "data": {
            "name": test.name,
            "checksum": test.checksum,
            "train_checksum": train.checksum,
            "classes": list(test.class_names),
            "train_size": len(train),
            "test_size": len(test),
            "train_counts": train.class_counts().tolist(),
        },
        "preset": experiment.config.preset,
        "config": experiment.config.as_dict(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "methods": rows,
        "reference": reference,
        "summary": {score: summarise(rows, reference, score) for score in scores},
        **extra,
    }
    write_json(Path(folder) / "results.json", result)
    return result


# ---------------------------------------------------------------------------------------- the ablation

ABLATION: dict[str, dict[str, Any]] = {
    "coop_bce": {"mix": 1.0, "classification": "binary_cross_entropy"},
    "lmpt": {},
    "no_captions": {"mix": 1.0},
    "same_margin": {"class_aware_margin": False},
    "no_reweighting": {"reweight": False},
    "published_contrast": {"contrast_reduction": "mean"},
    "db_with_captions": {"classification": "distribution_balanced"},
    "db_no_rebalancing": {"classification": "distribution_balanced", "rebalance": False},
    "db_no_tolerance": {"classification": "distribution_balanced", "negative_tolerant": False},
    "db_no_focal": {"classification": "distribution_balanced", "focal": False},
    "token_reading": {"reading": "token"},
    "token_reading_no_words": {"reading": "token", "token_offset": None},
    "full_stop": {"ending": "."},
    "unified_context": {"class_specific": False},
    "clip_scale": {"scale": "clip"},
}
"""Every variant changes LMPT's chosen settings in what it says, and in nothing else."""

ABLATION_TITLES = {
    "coop_bce": "CoOp + BCE: no captions, plain loss",
    "lmpt": "LMPT, settings chosen on validation",
    "no_captions": "without captions",
    "same_margin": "same margin for every class",
    "no_reweighting": "without re-weighting of classes",
    "published_contrast": "embedding loss averaged as published",
    "db_with_captions": "distribution-balanced loss instead",
    "db_no_rebalancing": "the same without re-balancing",
    "db_no_tolerance": "the same without negative tolerance",
    "db_no_focal": "the same without focal modulation",
    "token_reading": "token reading instead of pooled",
    "token_reading_no_words": "token reading, offset = number of contexts: captions' words have no gradient",
    "full_stop": "prompts end with a full stop",
    "unified_context": "one context for all classes",
    "clip_scale": "CLIP's own logit scale, no bias",
}


def run_ablation(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    seeds: Sequence[int] = tuple(range(20)),
    variants: Sequence[str] = tuple(ABLATION),
    noise_shares: Sequence[float] = NOISE_SHARES,
    reference: str = "coop_bce",
    num_workers: int = 1,
    command: str = "",
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What each part of LMPT adds, and what wrong captions cost; resumable.

    Args:
        folder: Results of single trials go to ``trials/`` in it.
        experiment: Data with captions, and LMPT's settings.
        seeds: Every variant sees the same ones.
        variants: Names in ``ABLATION``.
        noise_shares: Shares of captions that are replaced by those of other images, 0 to 1.
        reference: The variant the others are paired with.
        num_workers: Seeds that are worked on side by side, in processes of their own.
        command: What is written down as having made the results.
        on_trial: Called with a line about the trial that comes next.

    Returns:
        As :func:`run_multilabel_comparison`, with ``caption_noise``: for every share the mean, standard deviation
        and paired difference from share 0 of each score.

    Raises:
        DataError: No training image has a caption.
    """
    if not any(experiment.train.captions):
        raise DataError(f"{experiment.train.name}: no picture has a caption; the ablation needs captions on some")
    unknown = [name for name in variants if name not in ABLATION]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no variants; expected some of {', '.join(ABLATION)}")
    noisy = {f"captions_wrong_{round(100 * share)}": share for share in noise_shares if share > 0}

    def run(trial: Trial) -> dict[str, Any]:
        captions = None
        if trial.method in noisy:
            captions = replace_captions(
                experiment.train.captions, experiment.train.targets, noisy[trial.method], trial.seed
            )
        return experiment.run(trial.method, trial.seed, ABLATION.get(trial.method, {}), captions).row

    # A variant that is another one's settings by a second name is not trained again.
    first: dict[str, str] = {}
    settings = {name: repr({**experiment.config.as_dict(), **ABLATION[name]}) for name in variants}
    trained = {name: first.setdefault(settings[name], name) for name in variants}
    names = list(dict.fromkeys([*trained.values(), *(["lmpt"] if noisy else []), *noisy]))
    trials = [Trial(name, 0, seed) for seed in seeds for name in names]
    rows = run_trials(
        trials,
        run,
        Path(folder) / "trials",
        "ablation" + experiment.fingerprint(),
        num_workers=num_workers,
        on_trial=_telling(on_trial),
    )
    found = {(row["method"], row["seed"]): row for row in rows}
    shown = [{**found[trained[name], seed], "name": name, "method": name} for seed in seeds for name in variants]
    return _write_results(folder, experiment, shown, reference, command, {"caption_noise": _noise_curve(rows, noisy)})


def _noise_curve(rows: Sequence[dict[str, Any]], noisy: Mapping[str, float]) -> list[dict[str, Any]]:
    """One entry a share of wrong captions and score."""
    shares = {"lmpt": 0.0, **noisy}
    chosen = [row for row in rows if row["method"] in shares]
    return [
        {"share": shares[entry["method"]], "score": score, **{k: v for k, v in entry.items() if k != "shots"}}
        for score in SCORES
        if noisy and all(row[score] is not None for row in chosen)
        for entry in summarise(chosen, "lmpt", score)
    ]


# ------------------------------------------------------------------------------- the choice of settings

CANDIDATES: dict[str, dict[str, Any]] = {
    "chosen": {},
    "coop_bce": {"mix": 1.0, "classification": "binary_cross_entropy"},
    "best_epoch": {"keep": "best"},
    "epochs_25": {"num_epochs": 25},
    "epochs_100": {"num_epochs": 100},
    "rate_0.02": {"learning_rate": 0.02},
    "batch_32": {"batch_size": 32},
    "context_2": {"num_context": 2, "initial_words": "of a"},
    "context_16": {"num_context": 16},
    "random_start": {"initial_words": ""},
    "name_in_the_middle": {"class_position": "middle"},
    "mix_0.3": {"mix": 0.3},
    "mix_0.7": {"mix": 0.7},
    "gamma_0.5": {"reweight_gamma": 0.5},
    "margin_1": {"margin": 1.0},
    "without_mirror_images": {"flip": False},
    "published_loss": PUBLISHED_LOSS,
}
"""What was tried beside the chosen settings; each differs from them in what it says."""


def run_validation(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    candidates: Mapping[str, Mapping[str, Any]] = CANDIDATES,
    num_parts: int = 10,
    reference: str = "chosen",
    command: str = "",
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure candidate settings on parts of the training pictures; the test pictures are not touched.

    Average precisions are taken as if every class were equally frequent: parts of a long tail hold two or three
    pictures of a rare class, and the plain ones of those are noise.

    Args:
        folder: Results of single trials go to ``trials/`` in it.
        experiment: Data and the settings that the candidates change.
        candidates: Settings by name; ``reference`` is one of them.
        num_parts: Splits of the training pictures, the same for every candidate.
        reference: The candidate the others are paired with.
        command: What is written down as having made the results.
        on_trial: Called with a line about the trial that comes next.

    Returns:
        The content of ``results.json``: candidates, a row a trial, and a summary of each score as in
        :func:`run_multilabel_comparison`.
    """
    part_of = cache(experiment.part)

    def run(trial: Trial) -> dict[str, Any]:
        part = part_of(trial.seed)
        found = part.run(trial.method, trial.seed, candidates[trial.method])
        counts = experiment.train.class_counts()
        report = multilabel_report(found.logits, part.test.targets, counts, part.test.class_names, even=True)
        return {"name": trial.method, **{score: report[score] for score in SCORES}}

    fingerprint = repr((experiment.config.as_dict(), experiment.train.checksum, experiment.clip.checksum()))
    rows: list[dict[str, Any]] = []
    for number in range(num_parts):
        for name, settings in candidates.items():
            # Each candidate has a fingerprint of its own: another one beside it makes no result out of date.
            own = f"validation {dict(settings)} {fingerprint}"
            rows += run_trials(
                [Trial(name, 0, number)], run, Path(folder) / "trials", own, on_trial=_telling(on_trial, "part")
            )
    scores = [score for score in SCORES if all(row[score] is not None for row in rows)]
    result = {
        "command": command,
        "train_checksum": experiment.train.checksum,
        "preset": experiment.config.preset,
        "config": experiment.config.as_dict(),
        "candidates": {name: dict(s) for name, s in candidates.items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "methods": rows,
        "reference": reference,
        "summary": {score: summarise(rows, reference, score) for score in scores},
    }
    write_json(Path(folder) / "results.json", result)
    return result
