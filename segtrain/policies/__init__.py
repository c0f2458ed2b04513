"""Label policies that do more than take the labels as they are."""

from segtrain.policies.affinity import AFFINITY
from segtrain.policies.observers import OBSERVERS

__all__ = ["POLICIES"]

POLICIES = {**OBSERVERS, **AFFINITY}
"""Label policies of this folder by the name that method files use."""
