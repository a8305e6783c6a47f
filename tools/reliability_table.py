"""Writes the table of docs/reliability.md from what a nightly run of tests/faults reported.

    HPC_FAULTS_TABLE=rows.jsonl pytest tests/faults --nightly
    python tools/reliability_table.py rows.jsonl docs/reliability.md

Leaves the text around the table alone. Its one invariant: every number in the table was reported by a test that passed.
"""

import json
import os
import sys
from pathlib import Path

BEGIN, END = "<!-- table: tools/reliability_table.py -->", "<!-- end of table -->"


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows in the order of their reports."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(rows: list[dict[str, object]], machine: str) -> str:
    """Markdown, with a line that says on what it ran."""
    lines = [f"On {machine}:", "", "| attack | amount | result | seconds | date | commit |", "| --- | --- | --- | --- | --- | --- |"]
    keys = ("attack", "amount", "result", "seconds", "date", "commit")
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def machine() -> str:
    """What the tests ran on, for people; the kill rings train on the CPU."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else 'an unknown CPU'}, other work beside it"


def main() -> int:
    """Exit 2 where the page has no place for the table."""
    rows, page = Path(sys.argv[1]), Path(sys.argv[2])
    text = page.read_text()
    if BEGIN not in text or END not in text:
        print(f"{page}: has no {BEGIN} ... {END}. Add both lines where the table shall stand.", file=sys.stderr)
        return 2
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(read_rows(rows), machine())}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
