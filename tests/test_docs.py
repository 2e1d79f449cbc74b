"""Every code block of the documentation runs, and what is generated is current."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES = {"anybatch": "anybatch", "torchrun": "torch.distributed.run", "pytest": "pytest"}


def blocks(language: str) -> list[pytest.param]:
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))
    ]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code, tmp_path):
    check_runs([sys.executable, "-W", "error::DeprecationWarning", "-c", code], tmp_path)


@pytest.mark.parametrize("text", blocks("console"))
def test_console_block_runs(text, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in text.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        if command == "make":
            check_runs(["make", "--dry-run", *arguments], ROOT)
        else:
            check_runs([sys.executable, "-m", MODULES[command], *arguments], tmp_path)


def test_every_block_is_in_a_language_that_runs():
    for page in PAGES:
        languages = set(re.findall(r"^```(\S+)", page.read_text(), re.M))
        assert languages <= {"python", "console"}, page


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\((?!http)([^)#]+)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_generated_parts_are_current():
    check_runs([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], ROOT)


def check_runs(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
