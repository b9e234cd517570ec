"""The shape of the package, read from its source: rooms, and what no module may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gcpl_lab"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("errors",),
    ("registry",),
    ("storage", "settings", "global_state"),
    ("data",),
    ("models",),
    ("training",),
    ("evaluation",),
    ("fast",),
    ("gcpl", "lmpt"),
    ("baselines",),
    ("views",),
    ("experiments",),
    ("report",),
    ("pilot",),
    ("workshop",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a module imports from its own room or from a lower floor; rooms of one floor not from each other.
The package's ``__init__`` alone stands outside: it names what users import, and loads it when it is asked for."""

OF_A_DEVICE = ("torch.cuda", "torch.mps", "torch.xpu", "torch.accelerator", "torch.backends")
"""What depends on the kind of device stands in few modules, so that it is known which lines a CPU never runs."""

KNOW_THE_MACHINE = ("training.device", "training.machine", "training.processes")


def name_of(path: Path) -> str:
    """``data.readers`` for ``gcpl_lab/data/readers.py``; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def floor_of(module: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if room_of(module) in rooms:
            return floor
    raise AssertionError(f"gcpl_lab.{module} stands on no floor; expected one of {FLOORS}")


def may_import(module: str, other: str) -> bool:
    return room_of(module) == room_of(other) or floor_of(other) < floor_of(module)


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Full dotted names of what a module imports, anywhere in it, with the line."""
    package = ("gcpl_lab", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def known_module(name: str) -> str | None:
    """The module of ours that a dotted name leads to, without ``gcpl_lab``, or None for other packages."""
    first, _, inner = name.partition(".")
    if first != "gcpl_lab":
        return None
    parts = inner.split(".") if inner else []
    # `from gcpl_lab.data.readers import read_image` names something inside a module: drop it until a module is left.
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return ".".join(parts)


def problems_in(path: Path, source: str) -> list[str]:
    """Everything that one module does and may not."""
    tree, module = ast.parse(source), name_of(path)
    found = []
    for name, line in imported_modules(tree, path):
        ours = known_module(name)
        if module and ours is not None and (not ours or not may_import(module, ours)):
            found.append(f"{line}: imports gcpl_lab.{ours}, which stands on no lower floor")
        if name.endswith(".*"):
            found.append(f"{line}: imports a star")
        first = name.split(".")[0]
        if first == "ipywidgets" and room_of(module) != "views":
            found.append(f"{line}: imports ipywidgets outside views")
        reading = ("joblib", "joblib.load", "joblib.dump", "torch.load")  # joblib.Parallel reads no file
        if first in ("pickle", "cloudpickle", "dill", "marshal", "shelve") or name in reading:
            found.append(f"{line}: imports {name}, which can run code from a file")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {problem}" for problem in problems_of_call(node, module)]
        if isinstance(node, ast.Attribute) and ast.unparse(node) in OF_A_DEVICE and module not in KNOW_THE_MACHINE:
            found.append(f"{node.lineno}: uses {ast.unparse(node)}, which is for {' and '.join(KNOW_THE_MACHINE)}")
    return found


def problems_of_call(node: ast.Call, module: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called == "print" and room_of(module) != "cli":
        yield "prints"
    if called in ("torch.load", "eval", "exec") or called.endswith(("read_pickle", "to_pickle")):
        yield f"calls {called}, which can run code from a file"
    for keyword in node.keywords:
        allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("allow_pickle", "trust_remote_code") and not allowed:
            yield f"passes {keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: name_of(path) or "gcpl_lab")
def test_modules_keep_to_the_rules(path: Path) -> None:
    problems = problems_in(path, path.read_text(encoding="utf-8"))
    assert not problems, "\n".join(f"{path.relative_to(PACKAGE.parent)}:{problem}" for problem in problems)


def test_no_module_of_leftovers() -> None:
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "misc", "common")]


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("data/readers.py", "from gcpl_lab.models import clip", "no lower floor"),
        ("data/readers.py", "from ..models.clip import FrozenCLIP", "no lower floor"),
        ("data/readers.py", "def f():\n    import gcpl_lab.lmpt.losses", "no lower floor"),
        ("gcpl/prompts.py", "from gcpl_lab.lmpt import prompts", "no lower floor"),
        ("storage.py", "from gcpl_lab.data import readers", "no lower floor"),
        ("lmpt/losses.py", "import gcpl_lab", "no lower floor"),
        ("lmpt/losses.py", "from gcpl_lab import GCPLClassifier", "no lower floor"),
        ("lmpt/losses.py", "import ipywidgets", "outside views"),
        ("lmpt/losses.py", "from math import *", "star"),
        ("lmpt/losses.py", "print(1)", "prints"),
        ("lmpt/losses.py", "import torch\ntorch.load('x')", "torch.load"),
        ("lmpt/losses.py", "from torch import load", "torch.load"),
        ("lmpt/losses.py", "import torch\ntorch.cuda.synchronize()", "torch.cuda, which is for training.device"),
        ("lmpt/losses.py", "import pickle", "pickle"),
        ("lmpt/losses.py", "from joblib import load", "joblib.load"),
        ("lmpt/losses.py", "import joblib", "joblib"),
        ("lmpt/losses.py", "np.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("lmpt/losses.py", "f(trust_remote_code=yes)", "trust_remote_code=yes"),
    ],
)
def test_the_rules_are_seen_to_be_broken(module: str, source: str, problem: str) -> None:
    (found,) = problems_in(PACKAGE / module, source)
    assert problem in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data/readers.py", "from gcpl_lab.errors import DataError\nfrom .sets import ImageSet"),
        ("lmpt/losses.py", "from gcpl_lab.models.clip import encode_token_embeddings"),
        ("views/widgets/base.py", "import ipywidgets"),
        ("cli/app.py", "import gcpl_lab.views\nprint(1)"),
        ("data/readers.py", "np.load('x', allow_pickle=False)"),
        ("training/device.py", "import torch\ntorch.cuda.is_available()"),
    ],
)
def test_the_rules_leave_the_rest_alone(module: str, source: str) -> None:
    assert problems_in(PACKAGE / module, source) == []
