"""What records say of the reported claims: verdicts by rule, recommendations, published figures, links to evidence."""

from mmrec_helpers.claims import rules_fixes, rules_memory, rules_structure, rules_time  # noqa: F401
from mmrec_helpers.claims.ledger import VERDICTS, Claim, Records, Verdict, decide, ledger_table, load_claims

__all__ = ["VERDICTS", "Claim", "Records", "Verdict", "decide", "ledger_table", "load_claims"]
