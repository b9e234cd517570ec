"""Errors that a user can act on.

Every message says which item, what it was, what was expected and what to do next.
The command line prints these without a traceback; anything else is a defect of ours.
"""


class LabError(Exception):
    """Base of every error that the package raises on purpose."""


class DataError(LabError, ValueError):
    """An image, label, list or folder is not what it should be."""


class ModelError(LabError, RuntimeError):
    """A frozen model cannot be found or loaded."""


class ArtifactError(LabError, ValueError):
    """A checkpoint or saved file is damaged, foreign or of another version."""


class TrainingError(LabError, RuntimeError):
    """Training cannot go on (a loss that is not finite, memory that ran out)."""


def explain(error: Exception) -> str:
    """What is wrong with values of a file, in words that do not ask for the source."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return "a value is of another kind" if isinstance(error, TypeError | AttributeError) else str(error)
