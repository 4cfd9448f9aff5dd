"""Review: what people should look at, once models have said what they can."""

import pyarrow as pa
import pyarrow.compute as pc

from assets import verification
from assets.conditions import follows
from assets.tables import Stage, Work
from pipeline import decisions, review, schema
from pipeline.config import Project


def build(project: Project) -> Stage:
    """The review stage of a project."""
    stage = Stage(project, "review")

    # After evaluation: trained models speak against people's labels, too. Nothing but reports reads the queue, and
    # people's answers come back as decisions, so there is no cycle.
    @stage.table(
        "review_queue",
        inputs=(
            *("images", "decisions", "labels", "audits", "calibration", "label_errors"),
            *("verifications", "verifier_trust", "trust", "exchangeability"),
        ),
        code="6",
        config=lambda p: [
            *(p.config.prices.model_dump(mode="json"), p.config.review.label_errors),
            *(p.config.labelling.nms_iou, p.config.trust.iou),
        ],
        condition=follows(),
    )
    def review_queue(work: Work) -> pa.Table:
        """What a person should look at: audits, people's labels in doubt, then what gains most per unit of cost."""
        labels, asked = work.read("labels"), work.read("verifications")
        unasked: set[str] = set()
        if work.config.verification.on:
            wanted = verification.for_verifier(work, labels)
            unasked = set(wanted["annotation_id"].to_pylist()) - set(asked["annotation_id"].to_pylist())
        return review.queue(
            labels,
            work.read("audits"),
            work.read("calibration"),
            work.config.prices,
            verifications=asked,
            verifier_trust=work.read("verifier_trust"),
            unasked=unasked,
            doubts=doubts_of(work, labels),
        )

    return stage


def doubts_of(work: Work, labels: pa.Table) -> review.Doubts:
    """The worst suspected errors of the batch that people have not settled, whichever model suspects them."""
    errors, said = work.read("label_errors"), work.read("decisions")
    errors = errors.filter(pc.equal(errors.column("batch"), work.batch))
    proposed = review.overlooked(errors, work.config.labelling.nms_iou)
    proposed = decisions.apply(proposed, said, work.read("images"), work.config)
    open_ = schema.where_in(proposed, "status", ("needs_review",)), schema.where_in(labels, "status", ("human",))
    suspects = decisions.undecided(pa.concat_tables(open_), said)
    return review.Doubts.worst(errors, suspects, work.config.review.label_errors)
