"""What the layers of a model are given and what comes back to them, sample by sample, for models of every family."""

from taskarith_fast.capture.passes import Capture, Observer, observe

__all__ = ["Capture", "Observer", "observe"]
