"""Gates: pure scores of one synthetic pair, each with a threshold beside it, and the verdict over all of them.

Imported by name from their rooms: the placebo test (`synth.gates.seam`) and its probe (`synth.gates.probe`), which
train a network and so bring the training loop along.
"""

from synth.gates.gates import Gates, GateSettings, Verdict, default_gates, rules_of, run_gates

__all__ = ["GateSettings", "Gates", "Verdict", "default_gates", "rules_of", "run_gates"]
