"""Commands that say where which method is worth its price: ``situations`` measures, ``verdict`` writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.markdown import Markdown
from typer import BadParameter, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import answer, console
from gcpl_lab.cli.comparing import HELD_OUT, method_names

WHICH = "Names joined by commas, or 'all': few_shots, look_alikes, shortcut, shift, names, label_noise, ..."


def situations(
    folder: options.Folder = Path("runs/situations"),
    which: Annotated[str, Option(help=WHICH)] = "all",
    methods: Annotated[str, Option(help="As for compare.")] = "quick",
    seeds: options.Seeds = "5",
    shots: options.Shots = 16,
    test_total: Annotated[int, Option("--test", min=10, help="Most test images, drawn anew for each seed.")] = 500,
    held_out: Annotated[bool, Option("--held-out", help=HELD_OUT)] = False,
    preset: options.Preset = "tiny",
    settings: options.Set = [],  # noqa: B006
    workers: options.Workers = 0,
    as_json: options.Json = False,
) -> None:
    """Few images, look-alikes, shortcuts, shifts, wrong names and labels, imbalance, a class more: who wins where?"""
    from gcpl_lab.experiments.situation_runs import run_situations
    from gcpl_lab.experiments.situations import SITUATIONS
    from gcpl_lab.experiments.verdict import draw_figures, merge, write_situations
    from gcpl_lab.gcpl.settings import GCPLConfig

    names = list(SITUATIONS) if which == "all" else [name.strip() for name in which.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SITUATIONS]:
        raise BadParameter(f"no situation {', '.join(unknown)}; expected some of {', '.join(SITUATIONS)}")
    chosen = method_names(methods, "gcpl")
    run: dict[str, Any] = {"settings": options.parse_settings(settings, GCPLConfig), "preset": preset}
    run |= {"situations": names, "methods": chosen, "seeds": options.parse_seeds(seeds), "shots": shots}
    run |= {"num_test": test_total, "held_out": held_out, **options.run_options(workers)}
    with console.status("") as status:
        result = run_situations(folder, on_trial=status.update, **run)
    found = merge([result])
    draw_figures(found, folder / "figures")
    shown = Markdown("\n".join(write_situations(found)))
    answer(result, as_json, shown, f"Every result: {folder / 'results.json'}, figures beside it")


SITUATION_FILES = "results.json of gcpl-lab situations or compare, or an earlier page's JSON; several times."
LMPT_FILES = "results.json of gcpl-lab ablate lmpt, as part=path; parts: comparison, ablation, parts, tails."


def verdict(
    results: Annotated[list[Path], Option("--results", help=SITUATION_FILES)] = [],  # noqa: B006
    busy: Annotated[list[Path], Option("--busy", help="Like --results, of a busy machine: no seconds.")] = [],  # noqa: B006
    lmpt: Annotated[list[str], Option("--lmpt", help=LMPT_FILES)] = [],  # noqa: B006
    kept: Annotated[Path, Option(help="What is kept of them; without --results it is read.")] = Path(
        "docs/verdict.json"
    ),
    output: Annotated[Path, Option("--output", "-o", help="The page.")] = Path("docs/verdict.md"),
    figures: Annotated[Path, Option(help="Where its figures go.")] = Path("runs/verdict"),
    as_json: options.Json = False,
) -> None:
    """For each situation which method won, by how much, how sure, at what cost: one page, from kept results."""
    from gcpl_lab.experiments.verdict import LMPT_TITLES, draw_figures, merge, write_page, write_slide
    from gcpl_lab.storage import read_json, write_json, write_text

    parts = [(part, path) for part, _, path in (text.partition("=") for text in lmpt)]
    if unknown := [part for part, path in parts if part not in LMPT_TITLES or not path]:
        raise BadParameter(f"no part {unknown[0]}; expected part=path with one of {', '.join(LMPT_TITLES)}")
    if results:
        of_lmpt = [(part, read_json(Path(path))) for part, path in parts]
        runs, slowed = ([read_json(path) for path in paths] for paths in (results, busy))
        write_json(kept, merge(runs, of_lmpt, slowed))
    elif parts:
        raise BadParameter("--lmpt goes with --results: both are kept in one file")
    found = read_json(kept)
    write_text(output, write_page(found))
    draw_figures(found, figures)
    write_slide(found, figures / "verdict.pptx")
    answer(found, as_json, f"{output}, from {kept}; figures and a slide in {figures}")
