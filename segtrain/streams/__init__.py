"""What training reads: labelled, synthetic and unlabelled images as one stream of batches, and the guards before it."""

from segtrain.streams.streams import Streams, check_alike, check_kept, check_leak, check_ranks

__all__ = ["Streams", "check_alike", "check_kept", "check_leak", "check_ranks"]
