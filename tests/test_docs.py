"""The README and the docs say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from evpipe.core.states import diagram

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_s_example_runs(tmp_path: Path) -> None:
    """The first Python block of the README is a script that prints its pipeline's value."""
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    script = tmp_path / "powers.py"
    script.write_text(found[1])
    environment = {"EVPIPE_DATA_DIR": str(tmp_path / "data"), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    expected = [sum(n**k for n in range(500)) for k in (1, 2, 3)]
    assert (done.stdout, done.returncode) == (f"{expected}\n", 0), done.stderr


def test_the_state_diagrams_are_those_of_the_tables() -> None:
    """The protocol page shows the tables that the machine asserts against."""
    page = (ROOT / "evpipe" / "docs" / "protocol.md").read_text()
    shown = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    drawn = [part.split("\n", 1)[1].strip() for part in diagram().split("%% ")[1:]]
    assert [part.strip() for part in shown] == drawn


def test_every_place_that_the_readme_links_is_there() -> None:
    """No link of the README or the docs points nowhere: neither at a file nor at a heading in it."""
    for page in (ROOT / "README.md", *(ROOT / "evpipe" / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            file, _, heading = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in _headings(there.read_text()), f"{page.name}: {target}"


def _headings(text: str) -> list[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found]
