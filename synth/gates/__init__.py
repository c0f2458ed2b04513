"""Gates: pure scores of one synthetic pair, each with a threshold beside it, and the verdict over all of them."""

from synth.gates.gates import Gates, GateSettings, Verdict, default_gates, run_gates

__all__ = ["GateSettings", "Gates", "Verdict", "default_gates", "run_gates"]
