"""Who owns which networks: students, averages of them, and which of them labels and predicts."""

from segtrain.topology.distil import Distil
from segtrain.topology.members import Bands, Dual, EmaTeacher, MultiDecoder, Single, Staged
from segtrain.topology.plausible import ProbUnet
from segtrain.topology.topology import Look, Topology
from synth.core.config import Settings

__all__ = ["TOPOLOGIES", "Look", "Topology"]

TOPOLOGIES: dict[str, type[Settings]] = {
    "single": Single, "ema_teacher": EmaTeacher, "dual": Dual, "multi_decoder": MultiDecoder, "bands": Bands,
    "staged": Staged, "distil": Distil, "prob_unet": ProbUnet,
}
"""Topologies by the name that method files use."""
