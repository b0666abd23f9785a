"""All checks of an audit, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from dataset_conversion.system.errors import UserError
from law_synth.audit import contents, copies, origins, storage
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Check, Finding, NotPossible, changed
from law_synth.audit.options import Audit
from nnunet_order.trusted_networks import UntrustedCode

Outcome = tuple[list[Finding], str]  # and what was looked at

CHECKS: dict[str, Callable[[AuditedData, Audit], Outcome]] = {
    "source masks": origins.check_sources,
    "training cases": origins.check_training_cases,
    "trained run": origins.check_run,
    "base model": origins.check_base,
    "judge": origins.check_judges,
    "hard cases": origins.check_hard_cases,
    "manifest": contents.check_manifest,
    "cases": contents.check_cases,
    "labels": contents.check_labels,
    "images": contents.check_images,
    "geometry": storage.check_geometry,
    "real cases": contents.check_real_cases,
    "splits": contents.check_splits,
    "copied masks": copies.check_masks,
}


def run_checks(audited: AuditedData, options: Audit) -> list[Check]:
    """Every check, whatever the others found."""
    checks = [_run(name, lambda check=check: check(audited, options)) for name, check in CHECKS.items()]
    likeness = copies.Likeness(audited, options)
    checks.append(_run("copied images", likeness.check_pixels))
    checks.append(_run("alike in thumbnails", likeness.check_thumbnails))
    checks.append(_run("alike in features", likeness.check_features))
    return checks


def _run(name: str, check: Callable[[], Outcome]) -> Check:
    try:
        findings, detail = check()
    except NotPossible as reason:
        return Check(name, "not possible", f"{reason}")
    except UntrustedCode:  # it is in the user's --segmenter, so it says nothing about the data set
        raise
    except UserError as error:  # a file of the source or of the model cannot be read
        finding = changed(name, f"{error}", "the check could not end")
        return Check(name, "failed", "could not end", (finding,))
    return Check(name, "failed" if findings else "passed", detail, tuple(findings))
