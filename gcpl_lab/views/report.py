"""The report of a run: one HTML page that holds everything, opened without a network and read on a phone."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import write_text
from gcpl_lab.views.letters import distinct

COLUMNS = {
    "accuracy": "Accuracy",
    "accuracy_within_family": "Inside families of look-alikes",
    "denoiser_evaluations": "Denoiser evaluations to classify",
    "train_seconds": "Seconds to train",
    "predict_seconds": "Seconds to classify",
}
"""Key in a method's results to the heading of its column."""

MULTILABEL_COLUMNS = {
    "map": "mAP",
    "map_head": "Head classes",
    "map_medium": "Medium classes",
    "map_tail": "Tail classes",
    "train_seconds": "Seconds to train",
}
"""The same where images have several labels."""

DOTS_PER_INCH, REM_PER_INCH = 150, 4.6
"""Of figures as ``save_figure`` writes them, and as the page shows them: letters of 12 points are 12 pixels high."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure in the report."""

    name: str  # of its files; not shown
    title: str
    message: str  # what one should see in it, in a sentence or two
    png_path: str | Path
    alt: str  # what the figure shows, for those who do not see it
    narrow: ReportFigure | None = None  # the same for a phone, in one column

    def data(self) -> str:
        """The PNG in base64."""
        return base64.b64encode(read_png(self.png_path)).decode("ascii")

    def width(self) -> float:
        """How wide it is shown, in rem: by its inches, so that all figures have letters of one size."""
        pixels = int.from_bytes(read_png(self.png_path)[16:20], "big")
        return round(pixels / DOTS_PER_INCH * REM_PER_INCH, 1)


def read_png(path: str | Path) -> bytes:
    """The bytes of a figure that ``save_figure`` wrote; ArtifactError where there is no such file or it is no PNG."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such figure; save it with save_figure first") from None
    if not content.startswith(b"\x89PNG"):
        raise ArtifactError(f"{path}: is no PNG; give the PNG that save_figure wrote")
    return content


def _cell(key: str, values: list[float]) -> str:
    """How the values of one column over seeds are written."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if key.startswith(("accuracy", "map")):
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * mean:.1f}{spread} %"
    return f"{mean:.1f}" if key.endswith("seconds") and mean < 10 else f"{mean:,.0f}"


def summarise_methods(
    methods: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None, shown: Mapping[str, str] = COLUMNS
) -> list[tuple[str, ...]]:
    """Rows of text, a method and a cell for each column ``shown``: seeds gathered into mean ± deviation, best first.

    ``methods`` are as in ``results.json``; None or an absent key is shown as a dash. ``titles`` say what methods are
    called on the page, by name; a method without a title keeps its name.
    """
    rows = []
    for name in dict.fromkeys(str(method["name"]) for method in methods):
        runs = [method for method in methods if method["name"] == name]
        columns = {key: [float(run[key]) for run in runs if run.get(key) is not None] for key in shown}
        label = (titles or {}).get(name, name) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
        first = columns[next(iter(shown))]
        best = statistics.fmean(first) if first else -math.inf
        rows.append((best, (label, *(_cell(key, values) for key, values in columns.items()))))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _listed(values: Any) -> str:
    """A mapping as "name value, name value"; a list with commas; anything else as it is."""
    if isinstance(values, Mapping):
        return ", ".join(f"{name} {_listed(value)}" for name, value in values.items())
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _facts(results: Mapping[str, Any], command: str | None) -> dict[str, str]:
    data = results["data"]
    learned = f"{data['shots']} a class" if data.get("shots") else data.get("train_size", "others")
    facts = {
        "Command": command,
        "Seeds": sorted({method["seed"] for method in results["methods"] if method.get("seed") is not None}),
        "Data": data.get("name"),
        "Classes": distinct(data.get("classes", [])),
        "Images": f"{learned} to learn from, {data['test_size']} to test on",
        "Data checksum": data.get("checksum"),
        "Machine": results.get("machine"),
        "Versions": results.get("versions"),
    }
    return {name: _listed(value) for name, value in facts.items() if value}


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
    columns: Mapping[str, str] = COLUMNS,
) -> Path:
    """Write the report as one page: figures inside, no script, nothing fetched, every text escaped.

    Args:
        path: Of the page; written whole or not at all.
        results: As in ``results.json``: ``data``, ``machine``, ``versions``, ``methods``.
        figures: In the order shown.
        question, answer: The heading, and the line under it.
        caveats, limits: Sentences about claims that the figures do not bear out, and about the rest.
        command: What makes this report again.
        titles: See :func:`summarise_methods`.
        columns: Of the table, sorted by the first; ``MULTILABEL_COLUMNS`` where images have several labels.

    Raises:
        ArtifactError: A figure's file is absent or no PNG.
    """
    environment = Environment(loader=PackageLoader("gcpl_lab", "views"), autoescape=True, undefined=StrictUndefined)
    words = {"question": question, "answer": answer, "caveats": caveats, "limits": limits, "figures": figures}
    page = environment.get_template("report.html.j2").render(
        **words,
        headings=["Method", *columns.values()],
        rows=summarise_methods(results["methods"], titles, columns),
        several=len({method["name"] for method in results["methods"]}) < len(results["methods"]),
        test_size=results["data"]["test_size"],
        facts=_facts(results, command),
    )
    return write_text(path, page)
