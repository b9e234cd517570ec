"""The report of a run: one HTML page that holds everything, opened without a network and read on a phone."""

from __future__ import annotations

import base64
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import write_text

HEADINGS = (
    "Method",
    "Accuracy",
    "Inside families of look-alikes",
    "Denoiser evaluations to classify",
    "Seconds to train",
    "Seconds to classify",
)
_MEASURED = ("accuracy", "accuracy_within_family", "denoiser_evaluations", "train_seconds", "predict_seconds")


@dataclass(frozen=True)
class ReportFigure:
    """A figure in the report.

    Attributes:
        name: Of its files, for the order of things; not shown.
        title: Heading over it.
        message: What one should see in it, in a sentence or two.
        png_path: The picture, which is copied into the page.
        alt: What the picture shows, for those who do not see it.
    """

    name: str
    title: str
    message: str
    png_path: str | Path
    alt: str


def summarise_methods(
    methods: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None
) -> list[tuple[str, ...]]:
    """Rows of the table of methods: one a name, seeds gathered into mean ± standard deviation, best first.

    Args:
        methods: As in ``results.json``: ``name, seed`` and the measured figures; None or an absent key is
            shown as a dash.
        titles: What methods are called on the page, by name; a method without a title keeps its name.

    Returns:
        Rows of text, in the order of ``HEADINGS``.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for method in methods:
        by_name.setdefault(str(method["name"]), []).append(method)
    rows = []
    for name, runs in by_name.items():
        columns = [[float(run[key]) for run in runs if run.get(key) is not None] for key in _MEASURED]
        ways = (_share, _share, _count, _seconds, _seconds)
        cells = [way(values) for way, values in zip(ways, columns, strict=True)]
        title = (titles or {}).get(name, name)
        label = f"{title} ({len(runs)} seeds)" if len(runs) > 1 else title
        best = statistics.fmean(columns[0]) if columns[0] else -math.inf
        rows.append((best, (label, *cells)))
    # Python's sort is stable: equal methods stay in the order in which they were given.
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _share(values: list[float]) -> str:
    if not values:
        return "–"
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean} %"


def _count(values: list[float]) -> str:
    return f"{statistics.fmean(values):,.0f}" if values else "–"


def _seconds(values: list[float]) -> str:
    if not values:
        return "–"
    mean = statistics.fmean(values)
    return f"{mean:.0f}" if mean >= 10 else f"{mean:.1f}"


def _table_note(results: Mapping[str, Any]) -> str:
    most = max(Counter(str(method["name"]) for method in results["methods"]).values(), default=1)
    spread = "± is the standard deviation over seeds." if most > 1 else "One seed: the spread over seeds is not known."
    return (
        f"Accuracy on {results['data']['test_size']} test photographs. {spread} "
        "Seconds are on the machine below, without encoding the photographs, which is done once for all methods. "
        "A dash stands where nothing was measured."
    )


def _pairs(values: Any) -> str:
    """A mapping as "name value, name value"; a list with commas; anything else as it is."""
    if isinstance(values, Mapping):
        return ", ".join(f"{name} {_pairs(value)}" for name, value in values.items())
    if isinstance(values, list | tuple | range):
        return ", ".join(str(value) for value in values)
    return str(values)


def _facts(results: Mapping[str, Any], command: str | None) -> list[tuple[str, str]]:
    data = results["data"]
    seeds = sorted({method["seed"] for method in results["methods"] if method.get("seed") is not None})
    facts = [
        ("Command", command or ""),
        ("Seeds", _pairs(seeds)),
        ("Data", str(data.get("name", ""))),
        ("Classes", _pairs(data.get("classes", ""))),
        ("Photographs", f"{data['shots']} a class to learn from, {data['test_size']} to test on"),
        ("Data checksum", str(data.get("checksum", ""))),
        ("Machine", _pairs(results.get("machine", ""))),
        ("Versions", _pairs(results.get("versions", ""))),
    ]
    return [(name, value) for name, value in facts if value]


def _check_results(results: Mapping[str, Any]) -> None:
    for key, parts in (("data", ("shots", "test_size")), ("methods", ())):
        if key not in results:
            raise ArtifactError(f"results has no {key!r} (it has {', '.join(results) or 'nothing'}); write it first")
        for part in parts:
            if part not in results[key]:
                raise ArtifactError(
                    f"results[{key!r}] has no {part!r}; expected name, checksum, classes, shots, test_size"
                )
    for place, method in enumerate(results["methods"]):
        if "name" not in method:
            raise ArtifactError(f"results['methods'][{place}] has no 'name'; every method needs one")


def _embed(figure: ReportFigure) -> dict[str, str]:
    try:
        content = Path(figure.png_path).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{figure.png_path}: no such picture for the figure {figure.name!r}; save the figure before the report"
        ) from None
    if not content.startswith(b"\x89PNG"):
        raise ArtifactError(f"{figure.png_path}: is no PNG; the report takes the PNG that save_figure wrote")
    data = base64.b64encode(content).decode("ascii")
    return {"title": figure.title, "message": figure.message, "alt": figure.alt, "data": data}


def write_report(
    path: str | Path,
    results: Mapping[str, Any],
    figures: Sequence[ReportFigure] = (),
    *,
    question: str,
    answer: str,
    caveats: Sequence[str] = (),
    limits: Sequence[str] = (),
    command: str | None = None,
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Write the report as one page: pictures inside, no script, nothing fetched from anywhere.

    Every text is escaped, because class names and folders come from users.

    Args:
        path: Of the page; written whole or not at all.
        results: As in ``results.json``: ``data``, ``machine``, ``versions``, ``methods``.
        figures: In the order shown.
        question: The heading.
        answer: One line, the first thing read.
        caveats: Sentences under "What does not hold": claims that the figures do not bear out.
        limits: Sentences under "Limits".
        command: What makes this report again.
        titles: What methods are called on the page, by their names in ``results``.

    Returns:
        ``path``.

    Raises:
        ArtifactError: ``results`` lacks a part, or a picture is absent or no PNG.
    """
    from jinja2 import Environment, StrictUndefined

    _check_results(results)
    source = resources.files("gcpl_lab.views").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False).from_string(source)
    page = template.render(
        title=question,
        question=question,
        answer=answer,
        headings=HEADINGS,
        rows=summarise_methods(results["methods"], titles),
        table_note=_table_note(results),
        figures=[_embed(figure) for figure in figures],
        caveats=list(caveats),
        facts=_facts(results, command),
        limits=list(limits),
    )
    return write_text(path, page)
