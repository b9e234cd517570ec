"""The registry: entries by name and in order, and what is said where there is no such name."""

import pytest

from gcpl_lab.errors import LabError
from gcpl_lab.registry import Entry, Registry


def test_entries_stand_in_order_and_a_second_of_the_same_name_replaces_the_first() -> None:
    """A cell of a notebook may run again, also while somebody goes through the names."""
    registry = Registry("loss")
    assert registry.register("own_loss", defaults={"delta": 1.0}, per_class=True)(float) is float
    registry.register("other", title="Another")(int)
    assert registry["own_loss"] == Entry("own_loss", "Own loss", float, {"delta": 1.0}, {"per_class": True})
    assert registry.titles() == {"own_loss": "Own loss", "other": "Another"}
    for name in registry:
        registry.register(name)(str)
    assert registry["own_loss"] == Entry("own_loss", "Own loss", str)
    assert (list(registry), len(registry)) == (["own_loss", "other"], 2)
    assert "other" in registry
    assert "third" not in registry
    with pytest.raises(LabError, match=r"'third' is no registered loss; expected one of own_loss, other\. One of your"):
        registry["third"]
