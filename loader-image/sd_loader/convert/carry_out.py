"""From the plan of a folder to the folder: written, verified, and described."""

from __future__ import annotations

from pathlib import Path

from sd_api.spec import Verify
from sd_loader.convert.plan import FolderPlan
from sd_loader.convert.result import Converted
from sd_loader.convert.writer import write_folder
from sd_loader.progress import Report
from sd_loader.verify import verify_folder


def carry_out(plan: FolderPlan, out: Path, verify: Verify, report: Report) -> Converted:
    """Write the planned files beneath the empty folder `out`, and verify them as asked."""
    digests = write_folder(out, plan.files, report)
    verify_folder(out, plan, verify, report)
    return Converted(
        files=digests,
        base_model=plan.base_model,
        pipeline_class=plan.pipeline_class,
        precision=plan.precision,
        prediction_type=plan.prediction_type,
        warnings=plan.warnings,
    )
