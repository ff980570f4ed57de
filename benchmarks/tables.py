"""The tables of docs/benchmarks.md from the figures of peers.py.

    python benchmarks/tables.py figures.json [more.json ...] docs/benchmarks.md

What stands between the two marks in the page is replaced; without a page the tables are printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables(figures: dict[str, Any]) -> Iterator[str]:
    """One section for a run of peers.py."""
    about = figures["about"]
    machine = about.get("gpu") or about["cpu"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "timm") if name in about)
    yield f"## {machine}, {about['threads']} threads, batches of {about['batch_size']}, {about['precision']}"
    yield ""
    yield f"{figures['date']}; {versions}. `python benchmarks/peers.py` with these settings."
    for name, stage in figures.get("stages", {}).items():
        peaks = figures.get("memory", {}).get(name, {})
        yield ""
        yield f"### {name[0].upper()}{name[1:]}"
        yield ""
        heading = ["", "images/s, best", "median", "ours is faster by", "of the limit", "peak, GiB"]
        yield f"| {' | '.join(heading if peaks else heading[:-1])} |"
        yield f"|{'---|' * (6 if peaks else 5)}"
        contestants = stage["contestants"]
        ours = next(iter(contestants.values()))["best"]
        for title, figure in contestants.items():
            best, median = (stage["images"] / figure[key] for key in ("best", "median"))
            share = best * figure["multiply_adds_per_image"] / stage["limit"]
            cells = [title, f"{best:.4g}", f"{median:.4g}", f"{figure['best'] / ours:.2f} x"]
            cells.append(f"{100 * share:.0f} %" if share else "")
            cells += [f"{peaks[title]:.2f}" if title in peaks else ""] if peaks else []
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    *sources, page = sys.argv[1:] if sys.argv[-1].endswith(".md") else [*sys.argv[1:], ""]
    if not sources:
        raise SystemExit(__doc__)
    text = "\n\n".join("\n".join(tables(json.loads(Path(source).read_text()))) for source in sources)
    if not page:
        print(text)
        return
    path = Path(page)
    before, _, rest = path.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{path} has no marks {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
