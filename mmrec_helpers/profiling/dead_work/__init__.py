"""Dead work: module calls and parameters that change nothing, found by data flow and by intervention.

finder          which calls and parameters are dead: ``find_dead_work``
costs           what a step saves without them: ``measure_savings``
survey          where what a call computes arrives
interventions   runs a loss again from the same state with something replaced
"""

from mmrec_helpers.profiling.dead_work.costs import Saving, measure_savings, with_costs
from mmrec_helpers.profiling.dead_work.finder import NOT_TRIED, Finding, find_dead_work, findings_table

__all__ = ["NOT_TRIED", "Finding", "Saving", "find_dead_work", "findings_table", "measure_savings", "with_costs"]
