"""Multi-label experiments: every method on the same split, with what is frozen computed once; the ablation.

The settings of methods, variants and candidates are a table in ``lmpt_variants.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.baselines.base import MULTILABEL_BASELINES, FeatureSupport
from gcpl_lab.baselines.multilabel import draw_part
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.multilabel import replace_captions, split_validation
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.evaluation.compare import Trial, summarise
from gcpl_lab.evaluation.mirroring import choose_mirroring
from gcpl_lab.evaluation.multilabel import choose_thresholds, multilabel_report
from gcpl_lab.experiments.base import Experiment, OnStep, Stopwatch, run_all
from gcpl_lab.experiments.registry import MULTILABEL_METHODS, Titles
from gcpl_lab.lmpt.estimator import LMPTClassifier, load_clip, measure_scores, sigmoid
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.registry import Entry
from gcpl_lab.storage import read_json

_TABLE: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("lmpt_variants.json"))

PUBLISHED_LOSS: dict[str, Any] = _TABLE["published_loss"]
"""LMPT's loss with the authors' settings for VOC-LT, on CLIP's own scale; prompts, reading and training are ours."""

PUBLISHED: dict[str, Any] = PUBLISHED_LOSS | _TABLE["published_rest"]
"""The authors' whole command for VOC-LT, as far as this package goes.

What still differs: their sign of the embedding loss is the other one; they lower the rate where the mAP on the test
set stands still, and keep the checkpoint that is best there, while here the rate is constant and the prompts at the
end are kept; their SGD has a weight decay of 1e-4, ours none; see also :class:`~gcpl_lab.lmpt.objective.LMPT`.
"""

# CoOp is LMPT without captions: all other settings are the same, so that pairs differ in one thing.
for _name, (_title, _settings) in {
    **_TABLE["methods"],
    "lmpt_published_loss": ("LMPT, published loss", PUBLISHED_LOSS),
    "lmpt_published": ("LMPT, published settings", PUBLISHED),
}.items():
    MULTILABEL_METHODS.register(_name, title=_title, defaults=_settings)(LMPTClassifier)

MULTILABEL_TITLES = Titles(MULTILABEL_METHODS.entries)

ABLATION: dict[str, dict[str, Any]] = {name: settings for name, (_, settings) in _TABLE["ablation"].items()}
"""Every variant changes LMPT's chosen settings in what it says, and in nothing else."""
WRONG, OWN = "captions_wrong_", "captions_own"
"""Variants that hear other captions: with a number behind it, so many percent are other images'; the frozen CLIP's."""
ABLATION_TITLES: dict[str, str] = {name: title for name, (title, _) in _TABLE["ablation"].items()}
ABLATION_TITLES |= {f"{WRONG}{part}": f"{part} % of the captions wrong" for part in (10, 25, 50, 100)}

CANDIDATES: dict[str, dict[str, Any]] = {**_TABLE["candidates"], "published_loss": PUBLISHED_LOSS}
"""What was tried beside the chosen settings; each differs from them in what it says."""

SCORES = ("map", "map_head", "map_medium", "map_tail")


@dataclass(frozen=True)
class MultiLabelOutcome:
    """One method with one seed."""

    method: str
    seed: int
    logits: np.ndarray  # float (test image, class), comparable within a class
    probabilities: np.ndarray  # (test image, class), sigmoids scaled on validation images
    thresholds: np.ndarray  # (class,), chosen there too
    row: dict[str, Any]  # what results.json holds
    model: LMPTClassifier | None = None  # of a prompt method
    scorer: Any = None  # of a baseline: what it learned, and the scale and bias of its sigmoids


class MultiLabelExperiment(Experiment[MultiLabelSet]):
    """All methods on one training and one test set, with the same classes in the same order.

    For each seed, part of the training images is held out; it chooses the scale of probabilities and the thresholds of
    every method alike; the probe's strength is chosen on the parts that LMPT's settings were. With ``refit`` what is
    trained then learns once more, from all of them. With ``flip`` it learns from mirror images too.
    The test set is only measured on. The model loads and images are encoded when a method first needs them.

    Args:
        train: With captions where there are any.
        settings: Fields of :class:`~gcpl_lab.lmpt.settings.LMPTConfig` for the prompt methods.
        clip: A loaded model to share.
        on_step: Called with (method, record, number of steps) after every update, for progress.
    """

    role = "train"

    def __init__(
        self,
        train: MultiLabelSet,
        test: MultiLabelSet,
        *,
        preset: str = "tiny",
        settings: Mapping[str, Any] | None = None,
        clip: FrozenCLIP | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        super().__init__(train, test, preset, settings, on_step)
        self.train = train
        self.config = LMPTConfig.from_dict({**self.settings, "preset": preset})
        self._clip = clip
        self._chosen: dict[str, dict[str, Any]] = {}

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen CLIP."""
        return self._clip or load_clip(self.config)

    def fingerprint(self) -> str:
        """Whatever results depend on besides method and seed."""
        return repr((self.config.as_dict(), self.train.checksum, self.test.checksum, self.clip.checksum()))

    def run(
        self,
        method: str,
        seed: int,
        overrides: Mapping[str, Any] | None = None,
        captions: Sequence[str | None] | None = None,
    ) -> MultiLabelOutcome:
        """Learn one method and score the test images.

        Args:
            method: A method or a variant of the ablation; with ``overrides``, settings of this run alone, any name.
            seed: Of the validation split, the starting prompts and the batches.
            captions: Instead of those the name stands for, which are the training set's where it says nothing else.
        """
        if overrides is None and method in MULTILABEL_BASELINES:
            return self._run_baseline(MULTILABEL_METHODS[method], seed)
        if overrides is None:
            variant = method not in MULTILABEL_METHODS and (method in ABLATION or method.startswith(WRONG))
            overrides = ABLATION.get(method, {}) if variant else MULTILABEL_METHODS[method].defaults
        model = LMPTClassifier(clip=self.clip, **{**self.config.as_dict(), "fit": self.fit, **overrides, "seed": seed})
        train, views = self.train, self.views
        _ = self.test_features  # encoded before the watch starts
        captions = self._captions(method, seed) if captions is None else captions
        watch = Stopwatch()
        records = model.learn(views, train.targets, train.class_names, captions)
        self.follow(method, records, lambda: model.num_steps_)
        watch.learned()
        return self.outcome_of(model, watch, method)

    def measure(self, trial: Trial) -> dict[str, Any]:
        """The row of a trial."""
        return self.run(trial.method, trial.seed).row

    def _captions(self, method: str, seed: int) -> Sequence[str | None]:
        """The training set's captions, or a variant's: other images', or the names that the frozen CLIP finds."""
        train, names = self.train, self.train.class_names
        if method.startswith(WRONG):
            return replace_captions(train.captions, train.targets, float(method.removeprefix(WRONG)) / 100, seed)
        if method != OWN:
            return train.captions
        count = max(1, round(float(train.targets.sum(axis=1).mean())))  # as many as images have labels on average
        best = ZeroShotCLIP(self.clip, names).scores(self.views[0]).topk(count).indices.tolist()
        return ["a photo of " + " and ".join(names[label] for label in row) for row in best]

    def outcome_of(self, model: LMPTClassifier, watch: Stopwatch, method: str = "lmpt") -> MultiLabelOutcome:
        """What prompts that have learned say of the test images; the watch has run since they began to learn."""
        logits, seed = model.scores_of(self.test_features), model.config.seed
        return self._outcome(method, seed, logits, model.sigmoid_, model.thresholds_, watch, model)

    def _run_baseline(self, entry: Entry, seed: int) -> MultiLabelOutcome:
        targets, test = self.train.targets, self.test_features
        mirrored = choose_mirroring(self.config.flip, self.views, targets, self.train.class_names).flip
        views = self.views if mirrored else self.views[:1]
        training, validation = split_validation(targets, self.config.validation_share, seed)

        def of(chosen: np.ndarray) -> FeatureSupport:
            labels, seen = torch.from_numpy(targets[chosen]), views[:, torch.from_numpy(chosen)]
            names = self.train.class_names
            return FeatureSupport(class_names=names, labels=labels, seed=seed, clip=self.clip, features=seen)

        everything = np.arange(len(targets))
        if entry.name not in self._chosen:  # once for all seeds
            choose = entry.facts.get("choose")
            self._chosen[entry.name] = choose(of(everything)) if choose else {}
        settings = {**entry.defaults, **self._chosen[entry.name]}
        watch = Stopwatch()
        scorer = entry.target(of(training), **settings)
        known, wanted = scorer.scores(views[0, torch.from_numpy(validation)]).double().numpy(), targets[validation]
        scale_and_bias = fit_sigmoid(known, wanted)
        thresholds = choose_thresholds(sigmoid(known, scale_and_bias), wanted)
        if self.config.refit and entry.facts.get("shots", True):  # as prompts do
            scorer = entry.target(of(everything), **settings)
        watch.learned()
        logits = scorer.scores(test).double().numpy()
        found = self._outcome(entry.name, seed, logits, scale_and_bias, thresholds, watch)
        return replace(found, scorer=(scorer, scale_and_bias))

    def _outcome(
        self,
        method: str,
        seed: int,
        logits: np.ndarray,
        scale_and_bias: tuple[float, float],
        thresholds: np.ndarray,
        watch: Stopwatch,
        model: LMPTClassifier | None = None,
    ) -> MultiLabelOutcome:
        seconds, test, counts = watch.row(), self.test, self.train.class_counts()
        measured = measure_scores(logits, scale_and_bias, thresholds, test.targets, counts, test.class_names)
        row = {"name": method, "seed": seed, **measured, **seconds}
        if model is not None:
            row["validation_map"] = model.validation_map_
        return MultiLabelOutcome(method, seed, logits, sigmoid(logits, scale_and_bias), thresholds, row, model)

    def describe_data(self) -> dict[str, Any]:
        """Names, counts and checksums, for ``results.json``."""
        sizes = {"train_size": len(self.train), "train_counts": self.train.class_counts().tolist()}
        return super().describe_data() | sizes

    def part(self, number: int) -> MultiLabelExperiment:
        """An experiment on the training images alone, for choosing settings: learn from some, measure on the others.

        What a method keeps for validation is a part of what it learns from here.
        """
        learned, measured = draw_part(self.train.targets, number)
        own: dict[str, Any] = {"preset": self.preset, "settings": self.settings}
        own |= {"clip": self.clip, "on_step": self.on_step}
        part = MultiLabelExperiment(self.train.subset(learned), self.train.subset(measured), **own)
        part.views = self.views[:, torch.from_numpy(learned)]
        part.test_features = self.views[0][torch.from_numpy(measured)]
        return part


def run_multilabel_comparison(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    methods: Iterable[str] = MULTILABEL_METHODS,
    seeds: Sequence[int] = tuple(range(20)),
    reference: str = "coop_bce",
    command: str = "",
    **running: Any,
) -> dict[str, Any]:
    """Run every (method, seed) that has no result yet and write ``results.json``.

    Args:
        folder, **running: See :func:`~gcpl_lab.experiments.base.run_all`.
        experiment: Data and settings.
        methods: Names in ``MULTILABEL_METHODS``.
        seeds: Every method sees the same splits, starting prompts and batches.
        reference: The method the others are paired with.
        command: What is written down as having made the results.

    Returns:
        The content of ``results.json``: data, machine, versions, methods (a row a trial), and a summary of each score.
    """
    trials = [Trial(method, 0, seed) for seed in seeds for method in methods]
    rows = run_all(folder, trials, experiment.measure, experiment.fingerprint(), **running)
    found = {"data": experiment.describe_data(), "methods": rows, **_summed_up(rows, reference)}
    return experiment.write_results(folder, command, **found)


def run_tails(
    folder: str | Path,
    experiments: Sequence[MultiLabelExperiment],
    *,
    methods: Sequence[str] = ("zero_shot_clip", "sparc", "linear_probe", "text_probe", "coop_bce", "lmpt"),
    seeds: Sequence[int] = tuple(range(4)),
    reference: str = "coop_bce",
    command: str = "",
    **running: Any,
) -> dict[str, Any]:
    """Compare methods on several drawn tails: differences between draws count, not those between seeds of one.

    Args as for :func:`run_multilabel_comparison`, with one experiment and one folder in ``folder`` a tail.

    Returns:
        ``tails`` (of each the class counts and the mean score of every method), and ``summary`` over them: each tail
        is one number a method, the mean over its seeds.
    """
    same = {"methods": methods, "seeds": seeds, "reference": reference, "command": command, **running}
    tails: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, experiment in enumerate(experiments):
        line = f"tail {number}: {{method}}, seed {{seed}}"
        result = run_multilabel_comparison(Path(folder) / f"tail_{number}", experiment, line=line, **same)
        means: dict[str, dict[str, Any]] = {name: {"method": name, "shots": 0, "seed": number} for name in methods}
        for score, entries in result["summary"].items():
            for entry in entries:
                means[entry["method"]][score] = entry["mean"]
        rows += means.values()
        counts = dict(zip(result["data"]["classes"], result["data"]["train_counts"], strict=True))
        checksums = {"train_checksum": experiment.train.checksum, "test_checksum": experiment.test.checksum}
        tails.append({"class_counts": counts, **checksums, "methods": list(means.values())})
    found = {"seeds": list(seeds), "tails": tails, **_summed_up(rows, reference)}
    return experiments[0].write_results(folder, command, **found)


def run_ablation(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    seeds: Sequence[int] = tuple(range(20)),
    variants: Sequence[str] = tuple(ABLATION),
    noise_shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 1.0),
    reference: str = "coop_bce",
    command: str = "",
    **running: Any,
) -> dict[str, Any]:
    """What each part of LMPT adds, and what wrong captions cost; else as :func:`run_multilabel_comparison`.

    Args:
        variants: Names in ``ABLATION``; ``reference`` is one of them.
        noise_shares: Shares of captions that are replaced by those of other images, 0 to 1. The result has in
            ``caption_noise`` for every share the mean, standard deviation and paired difference from share 0.

    Raises:
        DataError: No training image has a caption.
    """
    train = experiment.train
    if not any(train.captions):
        raise DataError(f"{train.name}: no image has a caption; the ablation needs captions on some")
    if unknown := [name for name in variants if name not in ABLATION]:
        raise DataError(f"{', '.join(unknown)}: no variants; expected some of {', '.join(ABLATION)}")
    noisy = {f"{WRONG}{100 * share:g}": share for share in noise_shares if share > 0}

    # A variant that is another one's settings by a second name is not trained again.
    first: dict[str, str] = {}
    settings = {name: repr({**experiment.config.as_dict(), **ABLATION[name], OWN: name == OWN}) for name in variants}
    trained = {name: first.setdefault(settings[name], name) for name in variants}
    names = list(dict.fromkeys([*trained.values(), *(["lmpt"] if noisy else []), *noisy]))
    trials = [Trial(name, 0, seed) for seed in seeds for name in names]
    key = "ablation" + experiment.fingerprint()
    rows = run_all(folder, trials, experiment.measure, key, **running)
    found = {(row["method"], row["seed"]): row for row in rows}
    shown = [{**found[trained[name], seed], "name": name, "method": name} for seed in seeds for name in variants]
    result = {"data": experiment.describe_data(), "methods": shown, "caption_noise": _noise_curve(rows, noisy)}
    return experiment.write_results(folder, command, **result, **_summed_up(shown, reference))


def _noise_curve(rows: Sequence[dict[str, Any]], noisy: Mapping[str, float]) -> list[dict[str, Any]]:
    """One entry a share of wrong captions and score."""
    shares = {"lmpt": 0.0, **noisy} if noisy else {}
    summary = _summed_up([row for row in rows if row["method"] in shares], "lmpt")["summary"]
    named = [(score, entry) for score, entries in summary.items() for entry in entries]
    return [{"share": shares[entry["method"]], "score": score, **entry} for score, entry in named]


def run_validation(
    folder: str | Path,
    experiment: MultiLabelExperiment,
    *,
    candidates: Mapping[str, Mapping[str, Any]] = CANDIDATES,
    num_parts: int = 10,
    reference: str = "chosen",
    command: str = "",
    **running: Any,
) -> dict[str, Any]:
    """Measure candidate settings on parts of the training images; the test images are not touched.

    Average precisions are taken as if every class were equally frequent: parts of a long tail hold two or three
    images of a rare class, and the plain ones of those are noise.

    Args as for :func:`run_multilabel_comparison`, and these:
        candidates: Changed settings by name; ``reference`` is one of them.
        num_parts: Splits of the training images, the same for every candidate.
    """
    train, part_of = experiment.train, cache(experiment.part)

    def run(trial: Trial) -> dict[str, Any]:
        part = part_of(trial.seed)
        found, test = part.run(trial.method, trial.seed, candidates[trial.method]), part.test
        report = multilabel_report(found.logits, test.targets, train.class_counts(), test.class_names, even=True)
        return {"name": trial.method, **{score: report[score] for score in SCORES}}

    fingerprint = repr((experiment.config.as_dict(), train.checksum, experiment.clip.checksum()))
    rows: list[dict[str, Any]] = []
    for number in range(num_parts):
        for name, settings in candidates.items():
            # Each candidate has a fingerprint of its own: another one beside it makes no result out of date.
            own = f"validation {dict(settings)} {fingerprint}"
            rows += run_all(folder, [Trial(name, 0, number)], run, own, "{method}, part {seed}", **running)
    tried = {"candidates": {name: dict(settings) for name, settings in candidates.items()}, "methods": rows}
    found = {**tried, "train_checksum": train.checksum, **_summed_up(rows, reference)}
    return experiment.write_results(folder, command, **found)


def _summed_up(rows: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    """``reference``, and ``summary`` of every score; a part of the tail without classes has none."""
    measured = [score for score in SCORES if all(row.get(score) is not None for row in rows)]
    return {"reference": reference, "summary": {score: summarise(rows, reference, score) for score in measured}}
