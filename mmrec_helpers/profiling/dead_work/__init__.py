"""Dead work: module calls and parameters that change nothing, found by intervention.

finder          which calls and parameters are dead: ``find_dead_work``
interventions   runs a loss again from the same state with something replaced
nested_tensors  finds and replaces the tensors in any structure
costs           what calls and parameters take in time and memory
"""

from mmrec_helpers.profiling.dead_work.finder import Finding, find_dead_work, findings_table

__all__ = ["Finding", "find_dead_work", "findings_table"]
