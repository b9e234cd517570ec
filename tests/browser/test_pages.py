"""The pages that need no kernel: the report of a run, on a desk and on a phone, and the hover map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcpl_lab.views.interactive import write_hover_map
from gcpl_lab.views.projection import project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPORT = Path(__file__).parents[2] / "runs" / "demo" / "report.html"

# Where bokeh has drawn a point of the first map, in pixels of the window.
PLACE_OF_A_POINT = """index => {
    const find = view => view.model.type === "Figure" ? view : (view.child_views ?? []).map(find).find(Boolean);
    const view = [...Bokeh.index].map(find).find(Boolean);
    const data = view.model.renderers[0].data_source.data;
    const corner = view.canvas_view.el.getBoundingClientRect();
    return [corner.left + view.frame.x_scale.compute(data.x0[index]),
            corner.top + view.frame.y_scale.compute(data.y0[index])];
}"""


def addresses_asked_for(page: Any, address: str) -> list[str]:
    """Everything that a page fetches while it loads, itself and what it carries inside left out."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_load_state("load")
    return [url for url in asked if url != address and not url.startswith(("data:", "blob:"))]


@pytest.mark.parametrize(("kind", "width"), [("desk", 1280), ("phone", 390)])
def test_report_is_whole_and_fits_the_window(open_page: Any, artifacts: Path, kind: str, width: int) -> None:
    if not REPORT.is_file():
        pytest.skip("runs/demo/report.html is not there; make demo writes it")
    page = open_page("about:blank", width=width)
    assert addresses_asked_for(page, REPORT.as_uri()) == []
    page.screenshot(path=artifacts / f"report_{kind}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page must not scroll sideways"
    broken = "Array.from(document.images).filter(e => !e.complete || !e.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.locator("img").count() > 0


def test_hover_map_shows_a_point_under_the_mouse(open_page: Any, artifacts: Path, tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 10)
    points = np.random.default_rng(0).normal(size=(20, 5)) + 4 * labels[:, None]
    path = write_hover_map(
        tmp_path / "map.html",
        project(points, "pca"),
        labels,
        ["bag", "shirt"],
        images=[np.full((28, 28), 12 * i, np.uint8) for i in range(20)],
        predictions={"all": labels},
        probabilities={"all": np.full(20, 0.75)},
        files=[f"file number {i}" for i in range(20)],
    )
    page = open_page("about:blank")
    assert addresses_asked_for(page, path.as_uri()) == []
    page.locator("canvas").first.wait_for()
    page.mouse.move(*page.evaluate(PLACE_OF_A_POINT, 3))
    page.get_by_text("file number 3").first.wait_for()
    assert page.get_by_text("predicted: bag (75.0%)").count()
    page.screenshot(path=artifacts / "hover_map.png")
