"""Instruments for any torch module: timing, regions of a step, memory, traces, dead work, device rates."""

from mmrec_helpers.profiling.dead_work import Finding, find_dead_work, findings_table
from mmrec_helpers.profiling.device_rates import measure_rates
from mmrec_helpers.profiling.examine import Examination, examine
from mmrec_helpers.profiling.memory import check_host_memory, measure_memory
from mmrec_helpers.profiling.regions import profile_steps
from mmrec_helpers.profiling.tensorboard import read_tb_profiler, write_tensorboard
from mmrec_helpers.profiling.timing import Ratio, Timings, measure, trimming_disabled
from mmrec_helpers.profiling.traces import record_trace, write_trace

__all__ = [
    "Examination",
    "Finding",
    "Ratio",
    "Timings",
    "check_host_memory",
    "examine",
    "find_dead_work",
    "findings_table",
    "measure",
    "measure_memory",
    "measure_rates",
    "profile_steps",
    "read_tb_profiler",
    "record_trace",
    "trimming_disabled",
    "write_tensorboard",
    "write_trace",
]
