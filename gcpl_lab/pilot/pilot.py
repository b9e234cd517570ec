"""A pilot on own images: runs, resumes, decides, and watches what comes in afterwards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student_t

from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation import costs as money
from gcpl_lab.evaluation.captions import check_captions, prompt_names, read_words, write_corrected
from gcpl_lab.evaluation.fit_of_models import fit_of_models
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.evaluation.multilabel import mean_average_precision
from gcpl_lab.evaluation.novelty import measure_novelty
from gcpl_lab.evaluation.prediction_sets import (
    mean_with_interval,
    measure_coverage,
    predict_label_sets,
    predict_sets,
    smallest_error_rate,
)
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments.registry import METHODS, MULTILABEL_METHODS, usable_workers
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.pilot.config import PilotConfig, read_config, write_config
from gcpl_lab.pilot.data import PilotData, find_kind, read_data, targets_of
from gcpl_lab.pilot.explain import compare_teaching, draw_evidence, explain_error
from gcpl_lab.pilot.images import check_images
from gcpl_lab.pilot.page import write_pages, write_watch_page
from gcpl_lab.pilot.sense import check_samples
from gcpl_lab.pilot.trials import Judge, check_methods, is_simple, make_experiment, run_pilot_trials
from gcpl_lab.pilot.verdict import decide, plan_trial
from gcpl_lab.pilot.watch import LOG, find_drift, read_labels, simulate_months, take_in
from gcpl_lab.storage import read_json, write_atomically, write_json
from gcpl_lab.training.device import default_device
from gcpl_lab.training.machine import describe_machine, describe_versions
from gcpl_lab.views.widgets.review import SampleReviewer, read_review

FORMAT, RESULTS, REVIEW = "gcpl_lab pilot 1", "pilot.json", "samples_review.csv"
Row = dict[str, Any]
Way = dict[str, Any]
"""How a method would be used: its answers, thresholds, costs, and the certainty below which a person looks."""


class Pilot:
    """A folder with ``pilot.toml``, everything that was measured, and the pages that say it.

    Example:
        >>> Pilot.create("runs/pilot", "my_images")
        >>> found = Pilot("runs/pilot").run()
        >>> found["verdict"]["sentence"]

    Args:
        folder: Holds ``pilot.toml``.
        **changes: Settings in the place of the file's, for a notebook.
    """

    def __init__(self, folder: str | Path, **changes: Any) -> None:
        self.folder = Path(folder)
        self.config: PilotConfig = read_config(self.folder, changes)
        self._single = self.config.kind == "classes"

    @classmethod
    def create(cls, folder: str | Path, images: str | Path, preset: str = "tiny") -> Pilot:
        """Write ``pilot.toml`` for a folder of images (or ``bundled:fashion`` and the like); an existing one stays."""
        where = str(images)
        if not where.startswith(("bundled:", "published:")):
            if not Path(where).is_dir():
                raise DataError(f"{where}: no such folder; expected class folders, or images with a metadata.csv")
            where = str(Path(where).resolve())
        write_config(Path(folder), where, find_kind(where), preset)
        return cls(folder)

    @cached_property
    def data(self) -> PilotData:
        """The images in three parts."""
        return read_data(self.config, self.folder)

    @cached_property
    def _clip(self) -> FrozenCLIP:
        """Loaded once for all methods that are asked."""
        return FrozenCLIP.load(self.config.preset, device=default_device())

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """The trade's words for each class."""
        return read_words(self.folder / self.config.words if self.config.words else None, self.data.class_names)

    @cached_property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Of calibration and of test images."""
        return targets_of(self.data.calibration), targets_of(self.data.test)

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``pilot.json``; ArtifactError where there is none, or one of another version."""
        path = self.folder / RESULTS
        found: dict[str, Any] = read_json(path)
        if found.get("format") != FORMAT:
            raise ArtifactError(f"{path}: has the format {found.get('format')!r}; expected {FORMAT!r}: run it again")
        changed = [name for name, value in self.config.as_dict().items() if found["config"].get(name) != value]
        if changed:
            raise ArtifactError(f"{self.folder}: {', '.join(changed)} changed since the pilot ran; run it again")
        if found["checksums"]["images"] != self.data.checksum:
            raise ArtifactError(f"{self.folder}: its images have changed since the pilot ran; run it again")
        return found

    def run(
        self, on_event: Callable[[str], None] | None = None, num_workers: int = 1, command: str = ""
    ) -> dict[str, Any]:
        """Everything that has not been measured yet, then ``pilot.json``, ``pilot.html``, ``card.md`` and a deck.

        Killed at any moment it goes on where it was: every method's answers and every other piece of work is kept.

        Args:
            on_event: Told by a line of what comes next.
            num_workers: Draws that are worked on side by side.
            command: What is written down as having made the results.

        Returns:
            The content of ``pilot.json``.
        """
        tell, config, data = on_event or (lambda _line: None), self.config, self.data
        check_methods(config)
        tell("looking at the images")
        found: dict[str, Any] = {"format": FORMAT, "command": command, "config": config.as_dict()}
        found |= {"class_names": list(data.class_names), "images": self._stage("images", lambda: check_images(data))}
        found |= {"captions": None, "samples": None}
        if isinstance(data.pool, MultiLabelSet) and any(data.pool.captions):
            found["captions"] = check_captions(data.pool, self.words)
            write_corrected(data.pool, self.words, self.folder / "metadata_corrected.csv")
        found["fit_of_models"] = self._stage("fit_of_models", self._measure_fit)
        experiment = make_experiment(config, data, self.words)
        rows = run_pilot_trials(config, experiment, self.folder, usable_workers(num_workers), tell)
        tell("thresholds, sets and costs")
        found |= {"methods": self._compare(rows), "learning_curve": self._curve(rows)}
        ways = {method: self._way(method, rows) for method in config.method_names}
        found |= self._decide(ways)
        taken = ways[found["chosen"]["method"]]
        learned = [method for method in ways if not is_simple(method, config.kind)]
        if config.generated and learned and self._single:
            tell("generated samples")
            arguments = (learned[0], taken["judge"], data, self.folder, config.seed)
            found["samples"] = self._stage("samples", lambda: check_samples(*arguments))
        tell("simulated months, and what corrections teach")
        months: Any = (taken["judge"], taken["answers"], data, config.seed)
        found["watch"] = self._stage("watch", lambda: simulate_months(*months))
        found["teaching"] = self._stage("teaching", lambda: compare_teaching(taken["judge"], data, seed=config.seed))
        found["verdict"] = decide(config, found)
        shares = [found[name]["accuracy"]["value"] for name in ("chosen", "simple_chosen")]
        found["trial"] = plan_trial(shares[0], shares[1], config.images_a_month)
        found["reviewed_samples"] = self._samples_reviewed()
        found |= {"versions": describe_versions(), "machine": describe_machine()}
        found["checksums"] = {"images": data.checksum, "configuration": _key(config.as_dict())}
        write_json(self.folder / RESULTS, found)
        tell("page, card and deck")
        write_pages(self.folder, found, data)
        return found

    def _stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """A piece of work that is done once for these images and settings."""
        path = self.folder / "stages" / f"{name}.json"
        key = _key([self.config.as_dict(), self.data.checksum, FORMAT])
        if path.is_file() and (kept := read_json(path)).get("key") == key:
            return kept["value"]
        value = compute()
        write_json(path, {"key": key, "value": value})
        return value

    def _measure_fit(self) -> dict[str, Any]:
        """Of one class an image; with several labels each image counts for its rarest one."""
        targets, names = targets_of(self.data.pool), self.data.class_names
        labels = np.where(targets == 1, 1 / np.maximum(targets.sum(axis=0), 1), 0).argmax(axis=1)
        kept = np.flatnonzero(targets.any(axis=1))
        images = [self.data.pool.images[place] for place in kept]
        return fit_of_models(images, labels[kept], names, preset=self.config.preset).as_dict()

    def _quality(self, row: Row) -> float:
        return self._measure(np.array(row["probabilities"])[-len(self.data.test) :])["value"]

    def _measure(self, chances: np.ndarray, num_draws: int = 0) -> dict[str, float]:
        """Accuracy on test images with Wilson's interval, or mean average precision with one by bootstrap."""
        test = self._targets[1]
        if self._single:
            right = int((chances.argmax(axis=1) == test.argmax(axis=1)).sum())
            return share_with_interval(right, len(test))._asdict()
        rng = np.random.default_rng([self.config.seed, 83])
        drawn = [rng.integers(len(test), size=len(test)) for _ in range(num_draws)]
        value = mean_average_precision(chances, test)
        ends = np.quantile([mean_average_precision(chances[p], test[p]) for p in drawn] or [value], [0.025, 0.975])
        return {"value": value, "low": float(ends[0]), "high": float(ends[1])}

    def _about(self, method: str) -> dict[str, Any]:
        title = (METHODS if self._single else MULTILABEL_METHODS).titles()[method]
        return {"method": method, "title": title, "simple": is_simple(method, self.config.kind)}

    def _compare(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Each method with all exemplars: quality on the test images over draws with its interval, and seconds."""
        found, most = [], max(row["shots"] for row in rows)
        for method in self.config.method_names:
            same = [row for row in rows if (row["method"], row["shots"]) == (method, most)]
            mean = mean_with_interval(np.array([self._quality(row) for row in same]))
            quality = {"value": mean.value, "low": max(0.0, mean.low), "high": min(1.0, mean.high)}
            seconds = {
                name: float(np.mean([row[name] for row in same])) for name in ("train_seconds", "predict_seconds")
            }
            sizes = {"num_draws": len(same), "num_images": len(self.data.test)}
            found.append({**self._about(method), "quality": quality, **sizes, **seconds})
        return sorted(found, key=lambda entry: -entry["quality"]["value"])

    def _curve(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Mean quality by exemplars, and what twice the images would bring: the slope over log2, with its interval."""
        found = []
        for method in self.config.method_names:
            same = [(float(np.log2(row["shots"])), self._quality(row)) for row in rows if row["method"] == method]
            x, y = np.array(same).T
            if len(set(x)) < 2:
                continue
            line = linregress(x, y)
            # scipy divides 0 by 0 where all values are the same.
            reach = float(student_t.ppf(0.975, len(x) - 2)) * (float(line.stderr) if np.ptp(y) else 0.0)
            slope = {"value": float(line.slope), "low": float(line.slope - reach), "high": float(line.slope + reach)}
            points = [{"shots": round(2**a), "quality": float(y[x == a].mean())} for a in sorted(set(x))]
            found.append({**self._about(method), "points": points, "doubling": slope, "num_points": len(x)})
        return found

    def judge(self, method: str) -> Judge:
        """A method of draw 0 that can be asked about other images."""
        names = self.data.class_names if self._single else prompt_names(self.words)
        return Judge(method, self.config, self.data, self.folder, names, self._clip)

    def _way(self, method: str, rows: Sequence[Row]) -> Way:
        """A method's answers on calibration and test images, and its threshold with the least cost on the former."""
        judge, data, wanted = self.judge(method), self.data, self._targets[0]
        most = max(row["shots"] for row in rows)
        row = next(row for row in rows if (row["method"], row["seed"], row["shots"]) == (method, 0, most))
        images = [*data.calibration.images, *data.test.images]
        if is_simple(method, self.config.kind):
            whole = judge.answer(images)
        else:  # as they were kept: the same prompts, the same noises
            whole = {name: np.array(row[name]) for name in ("probabilities", "errors") if name in row}
            whole["distances"] = judge.distances(images)
        count = len(wanted)
        answers = {"calibration": {}, "test": {}}  # type: dict[str, dict[str, np.ndarray]]
        for name, values in whole.items():
            answers["calibration"][name], answers["test"][name] = values[:count], values[count:]
        costs, known = self.config.costs(row["predict_seconds"] / len(images)), answers["calibration"]["probabilities"]
        sure, said = money.certainty_of(known, judge.thresholds), money.answers_of(known, judge.thresholds)
        most_reviewed, normal = self.config.most_reviewed, self._normal
        limit = money.choose_threshold(sure, said, wanted, costs, most_reviewed=most_reviewed, normal=normal)
        spent = money.measure_process(method, said, wanted, costs, reviewed=sure < limit, normal=normal)
        return {"judge": judge, "answers": answers, "costs": costs, "limit": limit, "spent": spent.cost.value}

    @property
    def _normal(self) -> int | None:
        name = self.config.normal_class
        return self.data.class_names.index(name) if name else None

    def _decide(self, ways: Mapping[str, Way]) -> dict[str, Any]:
        """The method with the least cost on calibration images, and the best simple one, measured on test images."""
        simple = [name for name in ways if is_simple(name, self.config.kind)]
        chosen, rival = (min(names, key=lambda name: ways[name]["spent"]) for names in (ways, simple))
        way, (wanted, test) = ways[chosen], self._targets
        found: dict[str, Any] = {}
        for key, method in (("chosen", chosen), ("simple_chosen", rival)):
            quality = self._measure(ways[method]["answers"]["test"]["probabilities"], num_draws=200)
            limit = ways[method]["limit"]  # JSON has no infinity: None sends everything to a person
            found[key] = {**self._about(method), "accuracy": quality, "num_images": len(test)}
            found[key]["certainty_limit"] = float(limit) if np.isfinite(limit) else None
        processes = self._processes(way, ways[rival])
        found["processes"] = [process.as_dict() for process in processes]
        found["cost"] = {process.name: process.cost.value for process in processes}
        ours, costs, set_up = processes[0], way["costs"], self.config.set_up
        found["break_even"] = {
            other.name: {
                "miss": money.break_even_miss(ours, other, costs),
                "images_a_month": money.break_even_images(ours, other, set_up),
            }
            for other in processes[2:]
        }
        sent = round(ours.reviews / money.PER * len(test))
        found["reviews"] = share_with_interval(sent, len(test))._asdict()
        answers = way["answers"]
        sets = self.answer_sets(answers["calibration"]["probabilities"], answers["test"]["probabilities"])
        least = [smallest_error_rate(int(count)) for count in wanted.sum(axis=0)]
        found["coverage"] = measure_coverage(sets, test, self.config.coverage).as_dict()
        found["coverage"] |= {"num_calibration": len(wanted), "smallest_error_by_class": least}
        labels = wanted.argmax(axis=1), test.argmax(axis=1)
        found["none_of_these"] = None  # with several labels, or two classes, nothing can be left out
        if self._single and test.shape[1] > 2:
            refused = self.config.most_refused
            novelty = measure_novelty(
                answers["calibration"], labels[0], answers["test"], labels[1], most_refused=refused
            )
            found["none_of_these"] = novelty
        if self._single:
            matrix = confusion_matrix(answers["test"]["probabilities"], labels[1])
            weighted = money.weighted_confusion(matrix, costs, self._normal)
            found["confusion"] = {"counts": matrix.tolist(), "cost": weighted.tolist()}
        return found

    def _processes(self, ours: Way, rival: Way) -> list[money.Process]:
        """Ours and the best simple method, each with and without reviews; then people alone, and nobody."""
        test, normal, made = self._targets[1], self._normal, list[money.Process]()
        for name, way in (("taken", ours), ("best simple", rival)):
            chances, thresholds = way["answers"]["test"]["probabilities"], way["judge"].thresholds
            sure, said = money.certainty_of(chances, thresholds), money.answers_of(chances, thresholds)
            for ending, sent in (("with reviews", sure < way["limit"]), ("without reviews", None)):
                title = f"{name}, {ending}"
                made.append(money.measure_process(title, said, test, way["costs"], reviewed=sent, normal=normal))
        people, all_of_them, nothing = self.config.costs(), np.ones(len(test), bool), np.zeros_like(test)
        if self._single:  # whatever comes in is taken for the normal class, or for the most frequent one
            nothing[:, int(self._targets[0].sum(axis=0).argmax()) if normal is None else normal] = 1
        made.append(
            money.measure_process("everything reviewed", test, test, people, reviewed=all_of_them, normal=normal)
        )
        made.append(money.measure_process("nothing reviewed", nothing, test, people, normal=normal))
        return made

    def answer_sets(self, calibration: np.ndarray, chances: np.ndarray) -> np.ndarray:
        """Sets bool (image, class) with the promised coverage, from probabilities of the calibration images."""
        wanted, promised = self._targets[0], self.config.coverage
        if self._single:
            return predict_sets(calibration, wanted.argmax(axis=1), chances, promised)
        return predict_label_sets(calibration, wanted, chances, promised)

    def _calibration_answers(self, judge: Judge) -> dict[str, np.ndarray]:
        images = self.data.calibration.images
        kept = self._stage("calibration", lambda: {name: rows.tolist() for name, rows in judge.answer(images).items()})
        return {name: np.array(rows) for name, rows in kept.items()}

    def watch(
        self,
        images: str | Path,
        *,
        reviews: str | Path | None = None,
        since: datetime | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Answer what came in, add it to ``watch.jsonl``, test it against the calibration images, write ``watch.html``.

        Args:
            images: A folder of new images; those that the log holds already are not answered again.
            reviews: A CSV with the columns file and label, where people have looked.
            since: Images with an earlier file time are passed over.
            on_progress: Called with the images answered and their number.

        Returns:
            ``alarms`` (``name``, ``after`` and ``figures``), ``num_images``, ``sent``, ``set_size``, ``class_mix``,
            ``drift`` and, with reviews, ``reviewed``: accuracy, coverage and cost against the promise.
        """
        results, names = self.results, self.data.class_names
        labels = read_labels(Path(reviews), names) if reviews else None
        judge = self.judge(results["chosen"]["method"])
        entries, counts = take_in(judge, Path(images), self.folder / LOG, since, on_progress)
        if not entries:
            raise DataError(f"{images}: all its images are older than {since}, and none was watched before")
        calibration = self._calibration_answers(judge)
        stream = {name: np.array([entry[name] for entry in entries]) for name in calibration}
        drift = find_drift(calibration, stream, judge.thresholds)
        sets = self.answer_sets(calibration["probabilities"], stream["probabilities"])
        limit = results["chosen"]["certainty_limit"]
        sent = money.certainty_of(stream["probabilities"], judge.thresholds) < (np.inf if limit is None else limit)
        said = money.answers_of(stream["probabilities"], judge.thresholds)
        figures = {name: {key: test[key] for key in test if key != "values"} for name, test in drift.items()}
        alarms = [
            {"name": name, "after": test["after"], "figures": figures[name]}
            for name, test in drift.items()
            if test["alarm"]
        ]
        found: dict[str, Any] = {"alarms": alarms, "num_images": len(entries), **counts, "drift": drift}
        found |= {"first": entries[0]["time"], "last": entries[-1]["time"], "made": time.strftime("%Y-%m-%d %H:%M")}
        found |= {
            "sent": share_with_interval(int(sent.sum()), len(sent))._asdict(),
            "set_size": float(sets.sum(axis=1).mean()),
        }
        found["class_mix"] = dict(zip(names, said.mean(axis=0).tolist(), strict=True))
        if labels is not None:
            found["reviewed"] = self._reviewed(entries, labels, said, sets, sent)
            if found["reviewed"]["accuracy"]["high"] < results["chosen"]["accuracy"]["low"]:
                about = {"measured": found["reviewed"]["accuracy"], "promised": results["chosen"]["accuracy"]}
                alarms.append({"name": "accuracy", "after": found["reviewed"]["num_images"], "figures": about})
        write_watch_page(self.folder / "watch.html", found, results)
        return found

    def _reviewed(
        self,
        entries: Sequence[Row],
        labels: Mapping[str, list[str]],
        said: np.ndarray,
        sets: np.ndarray,
        sent: np.ndarray,
    ) -> dict[str, Any]:
        """Accuracy, coverage and cost on the images that people have labelled."""
        places = [place for place, entry in enumerate(entries) if entry["file"] in labels]
        if not places:
            raise DataError("no reviewed file is among those that came in; the review file must have their names")
        names = self.data.class_names
        targets = np.array([[name in labels[entries[place]["file"]] for name in names] for place in places], np.uint8)
        right = (said[places] == targets).all(axis=1)
        process = money.measure_process(
            "reviewed", said[places], targets, self.config.costs(), reviewed=sent[places], normal=self._normal
        )
        accuracy = share_with_interval(int(right.sum()), len(right))._asdict()
        coverage = measure_coverage(sets[places], targets, self.config.coverage).as_dict()
        return {"num_images": len(places), "accuracy": accuracy, "coverage": coverage, "cost": process.as_dict()}

    def _samples_reviewed(self) -> dict[str, Any] | None:
        """What people said of the generated samples, in the file that :meth:`review_samples` writes."""
        decisions = [row["decision"] == "accept" for row in read_review(self.folder / REVIEW).values()]
        return (
            share_with_interval(sum(decisions), len(decisions))._asdict() | {"n": len(decisions)} if decisions else None
        )

    def review_samples(self) -> SampleReviewer:
        """A widget to accept or reject the generated samples one by one; the next run has the share on its pages."""
        files = sorted((self.folder / "samples").glob("*.png"))
        names = [self.data.class_names[int(path.name.split("_")[0])] for path in files]
        return SampleReviewer(files, self.folder / REVIEW, labels=names)

    def explain(self, image: str | Path, truth: str) -> dict[str, Any]:
        """What went wrong with an image that a person reports: see :func:`~gcpl_lab.pilot.explain.explain_error`.

        Where a denoiser decides, ``explained.png`` shows what in the image speaks for answer and truth.
        """
        judge = self.judge(self.results["chosen"]["method"])
        found = explain_error(judge, self._calibration_answers(judge), self.data, image, truth)
        if (drawn := draw_evidence(judge, self.data.class_names, image, truth, found["likeliest"])) is not None:
            found["figure"] = str(
                write_atomically(self.folder / "explained.png", lambda path: drawn.savefig(path, format="png"))
            )
        return found

    def next_exemplars(self, reviews: str | Path, images: str | Path, count: int = 10) -> list[Path]:
        """Of reviewed images those that the method was least sure of, which as exemplars would teach it most."""
        named = [Path(images) / name for name in read_labels(Path(reviews), self.data.class_names)]
        files = [path for path in named if path.is_file()]
        if not files:
            raise DataError(f"{reviews}: none of its files is in {images}; expected the folder that was reviewed")
        judge = self.judge(self.results["chosen"]["method"])
        sure = money.certainty_of(judge.answer(files)["probabilities"], judge.thresholds)
        return [files[place] for place in np.argsort(sure, kind="stable")[:count]]


def _key(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
