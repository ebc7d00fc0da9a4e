"""The door to MMRec: a checkout and any of its models, its logs, and its models made fast."""

from mmrec_helpers.mmrec.accelerate import Acceleration, accelerate, restore
from mmrec_helpers.mmrec.checkout import Batches, Checkout, open_checkout
from mmrec_helpers.mmrec.logs import read_log
from mmrec_helpers.mmrec.user_graph import write_user_graph

__all__ = [
    "Acceleration",
    "Batches",
    "Checkout",
    "accelerate",
    "open_checkout",
    "read_log",
    "restore",
    "write_user_graph",
]
