"""The audit of a data set put together: as JSON, as lines to read, and as one page of HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tillwatch.data.audit import Finding
from tillwatch.data.grouping import Claim
from tillwatch.evaluation.confounds import Cue

AUDIT_JSON = "audit.json"

_SHOWN = 20  # findings of a kind in the text; --json and --html have all


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What the audit of a data set found.

    Attributes:
        clips: how many can be used.
        classes: clips of each class.
        groups: count, source, how, and the size of each.
        claim: of a score on held-out groups.
        findings: problems first.
        cues: each with its score, the most telling first.
        tables: how many clips of each class have which length, size and frame rate.
    """

    clips: int
    classes: dict[str, int]
    groups: dict[str, Any]
    claim: Claim
    findings: tuple[Finding, ...]
    cues: tuple[Cue, ...]
    tables: dict[str, list[dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """Returns it as audit.json has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns it to read, a line for each thing that is said."""
        counted = ", ".join(f"{label} {count}" for label, count in self.classes.items())
        groups = self.groups
        lines = [
            f"{self.clips} clips: {counted}",
            f"{groups['count']} groups, {_source(groups['source'])}. {groups['how']}",
            f"a score on held-out groups can say: {self.claim.can}",
            f"it cannot say: {self.claim.cannot}",
        ]
        for name, rows in self.tables.items():
            shown = ", ".join(f"{row['value']}: {row['clips']}" for row in rows[:8])
            lines.append(f"{name}: {shown}" + (", ..." if len(rows) > 8 else ""))
        lines += ["", *self._findings()]
        if self.cues:
            lines += ["", f"{'cue':>16}  AUROC  95 % interval"]
            for cue in self.cues:
                around = "-" if cue.low is None else f"{cue.low:.2f} to {cue.high:.2f}"
                lines.append(f"{cue.cue:>16}  {cue.auroc:5.2f}  {around}{'  FLAGGED' if cue.flagged else ''}")
        return lines

    def _findings(self) -> list[str]:
        lines: list[str] = []
        for kind in dict.fromkeys(finding.kind for finding in self.findings):
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            lines += [f"{finding.severity}: {finding.text}" for finding in of_kind[:_SHOWN]]
            if len(of_kind) > _SHOWN:
                lines.append(f"... and {len(of_kind) - _SHOWN} more of the kind {kind!r}")
        return lines or ["nothing found that is wrong with these clips"]

    def page(self, title: str) -> str:
        """Returns it as one self-contained page of HTML."""
        counted = [[label, count] for label, count in self.classes.items()]
        tables = [
            f"<h2>{html.escape(name)}</h2>"
            + _table([name, "clips", *self.classes], [_row(row, list(self.classes)) for row in rows])
            for name, rows in self.tables.items()
        ]
        cues = [
            [
                cue.cue,
                f"{cue.auroc:.2f}",
                "" if cue.low is None else f"{cue.low:.2f} to {cue.high:.2f}",
                "flagged" if cue.flagged else "",
            ]
            for cue in self.cues
        ]
        findings = [[finding.severity, finding.kind, finding.text] for finding in self.findings]
        return _PAGE.format(
            title=html.escape(title),
            groups=html.escape(
                f"{self.groups['count']} groups, {_source(self.groups['source'])}. {self.groups['how']}"
            ),
            can=html.escape(self.claim.can),
            cannot=html.escape(self.claim.cannot),
            classes=_table(["class", "clips"], counted),
            findings=_table(["severity", "kind", "what"], findings) if findings else "<p>Nothing.</p>",
            cues=_table(["cue", "AUROC", "95 % interval", ""], cues) if cues else "<p>Too few groups to measure.</p>",
            tables="".join(tables),
        )


def read_claim(folder: Path) -> dict[str, str] | None:
    """Returns what a score on a run's held-out groups can claim; None if its audit.json does not tell."""
    try:
        claim = json.loads((folder / AUDIT_JSON).read_text(encoding="utf-8"))["claim"]
        return {name: str(claim[name]) for name in ("kind", "can", "cannot")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _source(source: str) -> str:
    return "each clip its own" if source == "none" else source if source.startswith("inferred") else f"by {source}"


def _row(row: dict[str, Any], classes: Sequence[str]) -> list[Any]:
    return [row["value"], row["clips"], *(row["classes"].get(label, 0) for label in classes)]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8885; vertical-align: top; }}
</style></head><body>
<h1>{title}</h1>
<p>{groups}</p>
<p><b>A score on held-out groups can say:</b> {can}</p>
<p><b>It cannot say:</b> {cannot}</p>
{classes}
<h2>Findings</h2>
{findings}
<h2>Cues that have nothing to do with motion</h2>
<p>How well each alone predicts the event in groups it has not seen; 0.5 is chance.</p>
{cues}
{tables}
</body></html>
"""
