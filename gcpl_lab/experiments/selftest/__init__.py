"""Whether this machine, with its GPU, computes what the package promises, and how fast: ``gcpl-lab selftest``."""

from gcpl_lab.experiments.selftest.runner import BUDGETS, run_selftest

__all__ = ["BUDGETS", "run_selftest"]
