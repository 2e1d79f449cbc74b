"""README's first table: figures of studies that were run, and plain words where none was."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLAIMS = [
    {"id": "a", "verdict": "reproduced", "statement": "more is less", "ours": "1 < 2", "seeds": 1, "size": "full"},
    {"id": "b", "verdict": "not", "statement": "less is more", "ours": "2 > 1 | 0", "seeds": 3, "size": "quick"},
    {"id": "c", "verdict": "not", "statement": "all is one", "ours": "3", "seeds": 2, "size": "full"},
]


@pytest.fixture(scope="module")
def story():
    sys.path.insert(0, str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("story", ROOT / "docs" / "story.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "docs"))


def test_a_study_without_results_is_not_yet_reproduced(story):
    table = story.story_table([story.Row("data", "use", "study", ("a",))], {})
    assert table.splitlines()[-1] == f"| data | use | {story.NOT_YET} | {story.UNKNOWN} |"


def test_the_first_claim_that_was_run_is_shown_and_the_first_that_failed(story):
    table = story.story_table([story.Row("data", "use", "study", ("missing", "a"))], {"study": CLAIMS})
    link = "(studies/study/README.md)"
    assert f"| [reproduced]{link}: more is less: 1 < 2 (1 seed) |" in table
    assert f"| [not]{link}: less is more: 2 > 1 \\| 0 (3 seeds, `run.py --quick` alone), and 1 more |" in table


def test_nothing_that_failed_is_said_of_what_was_run_alone(story):
    row = story.Row("data", "use", "study", ())
    assert story.fails(row, CLAIMS[:1]) == story.NOTHING
    assert story.measured(row, CLAIMS[:1]).endswith("more is less: 1 < 2 (1 seed)")


def test_claims_are_counted_by_verdict(story):
    listed = [story.ListedClaim(str(n), "P", "here", "so.", (f"study/{n}",), None) for n in range(3)]
    findings = {"study/0": story.Finding("not", ""), "study/1": story.Finding("reproduced", "")}
    assert story.claims_count(listed, findings) == "3 claims: 1 reproduced, 0 partly, 1 not, 1 not measured"


def test_a_study_that_was_run_has_the_figures_that_its_row_names(story):
    found = story.read_claims()
    for row in story.ROWS:
        made = {claim["id"] for claim in found.get(row.study, [])}
        assert not made or not row.claims or made & set(row.claims), row.study


def test_the_size_of_a_run_comes_from_its_results(story, tmp_path):
    for name, results in (("half", {"size": "quick", "claims": CLAIMS[:1]}), ("whole", {"claims": CLAIMS[:1]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    found = story.read_claims(tmp_path)
    assert {name: claims[0]["size"] for name, claims in found.items()} == {"half": "quick", "whole": "full"}


def test_the_story_is_in_the_first_lines_of_the_readme():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:32])
    for part in ("Which batch size", "![", "make demo", "make test", "NoiseMonitor", "where it fails", "claims:"):
        assert part in first
    assert first.rstrip().splitlines()[-1].startswith("| a policy")
