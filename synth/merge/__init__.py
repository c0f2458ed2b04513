"""Several annotators' masks of one image merged into one, with what is known of each annotator."""

from synth.merge.run import MergeSettings, merge_labels

__all__ = ["MergeSettings", "merge_labels"]
