"""`law-synth audit`: check a finished synthetic data set for leaks of held-out cases."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.json_files import read_json
from law_synth.audit.audited_data import read_audited_data
from law_synth.audit.checks import run_checks
from law_synth.audit.options import Audit
from law_synth.audit.verdict import print_report, write_report
from nnunet_order.devices import pick_device

logger = logging.getLogger(__name__)


def audit(options: Audit) -> None:
    """Check and print; exit with code 1 when the data set is not clean.

    UserError: bad options, no synthetic data set. SystemExit: it is not clean.
    """
    options.check()
    pick_device(options.device)
    audited = read_audited_data(options)
    if options.out is not None:
        _check_out(options.out, audited.dataset.folder)
    real = "no source data set" if audited.source is None else audited.source.folder
    logger.info("%d samples of %s, made from %s", len(audited.rows), audited.dataset.folder, real)
    if audited.view.is_volumetric:
        logger.info("they are volumes of one slice; real volumes are looked at slice by slice")
    if options.dry_run:
        return
    checks = run_checks(audited, options)
    clean = all(check.passed or (options.allow_unchecked and not check.findings) for check in checks)
    print_report(audited, checks, clean)
    if options.out is not None:
        write_report(options, audited, checks, clean)
    if not clean:
        sys.exit(1)


def _check_out(out: Path, folder: Path) -> None:
    """UserError: --out lies in the data set, or is another file."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: found a file in the data set, expected one outside; correct --out")
    check_writable(out)
    if not out.exists():
        return
    try:
        known = "checks" in read_json(out, dict)
    except UserError:
        known = False
    if not known:
        raise UserError(f"{out}: found another file, expected none or one of law-synth audit; change --out")
