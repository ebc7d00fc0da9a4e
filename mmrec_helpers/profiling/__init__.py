"""Measuring: timing, regions of a step, memory, traces, dead work, and what this device can do at best."""

from mmrec_helpers.profiling.calls import record_calls
from mmrec_helpers.profiling.regions import StepProfile, profile_of_trace, profile_steps
from mmrec_helpers.profiling.timing import Ratio, Timings, measure
from mmrec_helpers.profiling.traces import record_trace, write_trace

__all__ = [
    "Ratio",
    "StepProfile",
    "Timings",
    "measure",
    "profile_of_trace",
    "profile_steps",
    "record_calls",
    "record_trace",
    "write_trace",
]
