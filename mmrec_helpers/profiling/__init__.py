"""Measuring: timing, regions of a step, memory, traces, dead work, and what this device can do at best."""

from mmrec_helpers.profiling.allocator import trimming_disabled
from mmrec_helpers.profiling.dead_work import Finding, find_dead_work, findings_table
from mmrec_helpers.profiling.device_rates import DeviceRates, measure_rates
from mmrec_helpers.profiling.memory import MemoryProfile, check_host_memory, measure_memory
from mmrec_helpers.profiling.regions import StepProfile, profile_of_trace, profile_steps
from mmrec_helpers.profiling.tensorboard import TbTables, read_tb_profiler
from mmrec_helpers.profiling.timing import Ratio, Timings, measure
from mmrec_helpers.profiling.traces import record_trace, write_tensorboard, write_trace

__all__ = [
    "DeviceRates",
    "Finding",
    "MemoryProfile",
    "Ratio",
    "StepProfile",
    "TbTables",
    "Timings",
    "check_host_memory",
    "find_dead_work",
    "findings_table",
    "measure",
    "measure_memory",
    "measure_rates",
    "profile_of_trace",
    "profile_steps",
    "read_tb_profiler",
    "record_trace",
    "trimming_disabled",
    "write_tensorboard",
    "write_trace",
]
