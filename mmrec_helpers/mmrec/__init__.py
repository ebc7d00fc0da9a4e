"""The door to MMRec: its logs, and its models made fast."""

from mmrec_helpers.mmrec.accelerate import Acceleration, accelerate, restore
from mmrec_helpers.mmrec.logs import read_log

__all__ = ["Acceleration", "accelerate", "read_log", "restore"]
