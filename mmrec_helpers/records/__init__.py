"""What a measurement leaves on disk: JSON with its provenance, written whole, read back, found by kind."""

from mmrec_helpers.records.provenance import provenance
from mmrec_helpers.records.record import (
    check_record_path,
    different_settings,
    find_records,
    machine_of,
    n_train_of,
    plain,
    read_record,
    readable_records,
    store_record,
    write_record,
)

__all__ = [
    "check_record_path",
    "different_settings",
    "find_records",
    "machine_of",
    "n_train_of",
    "plain",
    "provenance",
    "read_record",
    "readable_records",
    "store_record",
    "write_record",
]
