"""pyproject.toml, constraints.txt, environment.yml and the Makefile tell one story."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]


def read_pins() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line).groups()
            assert canonicalize_name(name) not in pins, f"{name} is pinned twice"
            pins[canonicalize_name(name)] = Version(version)
    return pins


@pytest.mark.parametrize("requirement", [*RUNTIME, *DEVELOPMENT], ids=lambda requirement: requirement.name)
def test_every_dependency_has_a_lower_bound_and_a_fitting_pin(requirement: Requirement) -> None:
    assert [each.operator for each in requirement.specifier] == [">="], f"{requirement}: expected one lower bound"
    pins = read_pins()
    name = canonicalize_name(requirement.name)
    assert name in pins, f"{requirement.name} is not in constraints.txt"
    assert pins[name] in requirement.specifier, f"{name}=={pins[name]} does not satisfy {requirement}"


BESIDE = {"jupyterlab", "seaborn"}
"""What users of the notebooks get although no module imports it."""


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    """A package that only comes along with another one may stay away with that one's next version."""
    modules = {
        "huggingface-hub": "huggingface_hub",
        "ipython": "IPython",
        "open-clip-torch": "open_clip",
        "pillow": "PIL",
        "python-pptx": "pptx",
        "scikit-learn": "sklearn",
        "umap-learn": "umap",
    }
    declared = {modules.get(name, name) for name in map(canonicalize_name, (each.name for each in RUNTIME))} - BESIDE
    imported: dict[str, str] = {}
    for path in (*(ROOT / "gcpl_lab").rglob("*.py"), *(ROOT / "tools").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            imported |= {name.split(".")[0]: f"{path.relative_to(ROOT)}:{node.lineno}" for name in names}
    known = declared | {"gcpl_lab", "tools", *sys.stdlib_module_names}
    undeclared = {name: place for name, place in imported.items() if name not in known}
    assert not undeclared, f"add to the dependencies in pyproject.toml: {undeclared}"
    assert not declared - imported.keys(), "drop from the dependencies in pyproject.toml, or name them in BESIDE"


def test_pins_serve_computers_without_a_gpu() -> None:
    pins = read_pins()
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
    assert all(version.local is None for version in pins.values()), "a local version such as +cpu is on no index"


def test_conda_users_get_the_tested_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    conda = [each for each in environment["dependencies"] if isinstance(each, str)]
    (pip,) = [each["pip"] for each in environment["dependencies"] if isinstance(each, dict)]
    assert "pip" in conda
    (python,) = [each.partition("=")[2] for each in conda if each.startswith("python=")]
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])
    # No package but Python is named here, so there is no second list of versions that could drift.
    assert len(conda) == 2
    assert pip == ["-c constraints.txt", "-e .[dev]"]


def test_makefile_installs_the_tested_set() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert '-c constraints.txt -e ".[dev]"' in makefile
    for target in ("demo", "test", "lab", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert re.search(r"^\$\(STAMP\): pyproject\.toml constraints\.txt$", makefile, re.MULTILINE)


def run_continuous_integration(folder: Path, **targets: tuple[str, int]) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` with a Makefile of our own, whose targets say something and end with a status."""
    (folder / ".ci").mkdir(exist_ok=True)
    script = folder / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    said = {"test": ("1 passed in 1.00s", 0)} | {name.replace("_", "-"): what for name, what in targets.items()}
    rules = [
        f"{name}:\n\t@echo '{words}'\n\t@echo later words\n\t@exit {status}\n" for name, (words, status) in said.items()
    ]
    (folder / "Makefile").write_text("\n".join(rules), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    browser = folder / "chromium"  # nothing is to be installed for this
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    browser.chmod(0o755)
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)


def test_continuous_integration_counts_the_tests_of_all_runs_and_fails_with_one(tmp_path: Path) -> None:
    said = {
        "test": ("===== 3 passed, 1 skipped in 1.25s =====", 0),
        "test_notebooks": ("11 passed in 600.02s", 0),
        "test_browser": ("==== 2 skipped, 40 deselected in 0.90s (0:00:01) ====", 0),
        "test_processes": ("1 passed in 1.00s", 0),
    }
    done = run_continuous_integration(tmp_path, **said)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "15 passed, 3 skipped, 40 deselected in 603s"
    for failing in said:
        done = run_continuous_integration(tmp_path, **said | {failing: ("== 1 failed, 2 passed in 65.02s ==", 1)})
        assert (done.returncode != 0, "1 failed, " in done.stdout.splitlines()[-1]) == (True, True)
    done = run_continuous_integration(tmp_path, **said | {"test": ("broken", 1)})  # no test could run at all
    assert (done.returncode != 0, "did not run" in done.stdout.splitlines()[-1]) == (True, True)


@pytest.mark.parametrize("module", ["gcpl_lab", "gcpl_lab.data.samples", "gcpl_lab.storage"])
def test_imports_stay_light(module: str) -> None:
    """Help texts and error messages must not wait for torch; drawing libraries come when something is drawn."""
    heavy = ["torch", "diffusers", "transformers", "open_clip", "umap", "ipywidgets", "sklearn", "matplotlib"]
    script = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"import {module} loads these"
