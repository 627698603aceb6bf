"""Checkpoints in and out of files."""

from taskarith_fast.checkpoint.state import LazyState, check_destination, load_state_dict, save_state_dict, with_kind

__all__ = ["LazyState", "check_destination", "load_state_dict", "save_state_dict", "with_kind"]
