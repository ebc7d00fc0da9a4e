"""What records say: statistics, the cost model, the claims and their verdicts."""

from mmrec_helpers.claims import rules_fixes, rules_memory, rules_structure, rules_time  # noqa: F401
from mmrec_helpers.claims.ledger import Claim, Verdict, decide, decide_claim, ledger_table, load_claims, machine_of

__all__ = ["Claim", "Verdict", "decide", "decide_claim", "ledger_table", "load_claims", "machine_of"]
