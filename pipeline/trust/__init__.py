"""How far each labeller can be trusted, class by class, measured on images that people labelled.

`judge` says which answers are right, `evidence` how strongly they speak for a precision, `thresholds`
which score is safe although many were tried, `certify` does so for one labeller's answers, and `grade`
makes the table. `examination` says what a verifier is asked on gold, `witness` where its word counts,
and `prompts` how reliable each wording is. `calibrate` says what a score is worth, and `audit` keeps
certificates honest. docs/trust.md tells what a certificate promises and what it assumes.
"""

from pipeline.trust.audit import contradicted, draw
from pipeline.trust.calibrate import calibrate
from pipeline.trust.examination import Plan, plan
from pipeline.trust.gold import Gold
from pipeline.trust.grade import grade, other_targets
from pipeline.trust.prompts import evaluate_prompts
from pipeline.trust.witness import grade_verifier

__all__ = [
    "Gold",
    "Plan",
    "calibrate",
    "contradicted",
    "draw",
    "evaluate_prompts",
    "grade",
    "grade_verifier",
    "other_targets",
    "plan",
]
