"""Write the table of docs/troubleshooting.md from the enum of reasons.

python -m tools.make_troubleshooting_doc
"""

from __future__ import annotations

from pathlib import Path

from sd_api.reasons import Reason, Retry

DOC = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- made by tools/make_troubleshooting_doc.py -->\n", "<!-- end -->\n"
AGAIN = {
    Retry.NEVER: "no",
    Retry.ON_CHANGE: "when the spec or the reload annotation changes",
    Retry.RESYNC: "by itself, ever more slowly",
}


def table() -> str:
    """A line for each reason."""
    lines = ["| reason | what helps | tried again |", "|---|---|---|"]
    lines += [f"| {one.value} | {one.remedy} | {AGAIN[one.retry]} |" for one in Reason]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table of now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    DOC.write_text(page(DOC.read_text()))
