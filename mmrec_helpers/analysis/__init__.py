"""What records say: statistics, the cost model, the claims and their verdicts."""

from mmrec_helpers.analysis import verdicts_fixes, verdicts_memory, verdicts_structure, verdicts_time  # noqa: F401
from mmrec_helpers.analysis.ledger import Claim, Verdict, decide, decide_claim, ledger_table, load_claims, machine_of

__all__ = ["Claim", "Verdict", "decide", "decide_claim", "ledger_table", "load_claims", "machine_of"]
