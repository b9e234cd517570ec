"""The command line: ``gcpl-lab``."""

from gcpl_lab.cli.app import main

__all__ = ["main"]
