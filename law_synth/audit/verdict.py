"""What an audit shows and writes."""

from __future__ import annotations

from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dataset_conversion.system.json_files import write_json
from dataset_conversion.system.provenance import package_versions
from dataset_conversion.system.terminal import verbatim
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Check, Finding
from law_synth.audit.options import Audit

FORMAT = 1
STYLES = {"passed": "green", "failed": "bold red", "not possible": "yellow"}


def print_report(audited: AuditedData, checks: list[Check], clean: bool) -> None:
    """A table of the checks, then every finding on a line of its own, leaks first, then the verdict."""
    console = Console()
    table = Table(box=SIMPLE_HEAD, title=verbatim(f"Audit of {audited.dataset.folder.resolve().name}"))
    for column in ("Check", "Result", "Looked at"):
        table.add_column(column, overflow="fold")
    for check in checks:
        style = STYLES[check.result]
        count = f" ({len(check.findings)})" if check.findings else ""
        table.add_row(verbatim(check.name), f"[{style}]{check.result}{count}[/]", verbatim(check.detail))
    console.print(table, highlight=False)
    for finding in findings_of(checks):
        console.print(verbatim(finding), highlight=False, soft_wrap=True)
    console.print(verdict(checks, clean), highlight=False, soft_wrap=True)


def findings_of(checks: list[Check]) -> list[Finding]:
    """All findings: leaks first, then in the order of the checks."""
    found = [finding for check in checks for finding in check.findings]
    return sorted(found, key=lambda finding: finding.kind != "leak")


def verdict(checks: list[Check], clean: bool) -> str:
    """The last line of the report."""
    found = findings_of(checks)
    leaks = sum(finding.kind == "leak" for finding in found)
    others = len(found) - leaks
    unchecked = sum(check.result == "not possible" for check in checks)
    if clean:
        return "clean" + (f", but {unchecked} checks were not possible" if unchecked else "")
    hint = "" if found or not unchecked else " (--allow-unchecked accepts them)"
    return f"not clean: {leaks} leaks, {others} other findings, {unchecked} checks not possible{hint}"


def write_report(options: Audit, audited: AuditedData, checks: list[Check], clean: bool) -> None:
    """Write the report as JSON."""
    content = {
        "format": FORMAT,
        "dataset": str(audited.dataset.folder.resolve()),
        "source": None if audited.source is None else str(audited.source.folder.resolve()),
        "clean": clean,
        "max_similarity": options.max_similarity,
        "allow_unchecked": options.allow_unchecked,
        "checks": [asdict(check) for check in checks],
        "versions": package_versions("law-order", "torch", "numpy", "pillow", "timm"),
    }
    write_json(options.out, content)
