"""README's first table: figures of studies that were run, and plain words where none was."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLAIMS = [
    {"id": "a", "verdict": "reproduced", "statement": "more is less", "ours": "1 < 2", "seeds": 1},
    {"id": "b", "verdict": "not", "statement": "less is more", "ours": "2 > 1 | 0", "seeds": 3},
    {"id": "c", "verdict": "not", "statement": "all is one", "ours": "3", "seeds": 2},
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
    table = story.story_table([story.Row("data", "use", "study", ("missing", "a"))], {"study": {"claims": CLAIMS}})
    link = "(studies/study/README.md)"
    assert f"| [reproduced]{link}: more is less: 1 < 2 (1 seed) |" in table
    assert f"| [not reproduced]{link}: less is more: 2 > 1 \\| 0 (3 seeds), and 1 more |" in table


def test_a_claim_that_belongs_to_the_first_is_shown_beside_it(story):
    found = {"claims": CLAIMS}
    row = story.Row("data", "use", "study", ("a",), "c")
    assert story.measured(row, found).endswith(
        "1 < 2 (1 seed); [not reproduced](studies/study/README.md): all is one: 3 (2 seeds)"
    )
    assert story.measured(story.Row("data", "use", "study", ("a",), "gone"), found).endswith("1 < 2 (1 seed)")


def test_a_study_that_was_run_in_part_says_so(story):
    row = story.Row("data", "use", "study", ("b",))
    assert story.measured(row, {"size": "quick", "claims": CLAIMS}).endswith("(3 seeds, `run.py --quick` alone)")
    assert story.measured(row, {"size": "full", "claims": CLAIMS}).endswith("(3 seeds)")


def test_nothing_that_failed_is_said_of_what_was_run_alone_unless_a_limit_is_known(story):
    row = story.Row("data", "use", "study", ())
    price = {"curve": "chebyshev_gpomdp_005", "over_true_variance": 123.4}
    results = {"claims": CLAIMS[:1], "price": [{"curve": "another", "over_true_variance": 7.8}, price]}
    assert story.fails(row, results) == story.NOTHING
    assert "123 times" in story.fails(story.Row("", "", "study", (), limit=story.price_of_safety), results)
    assert story.fails(story.Row("", "", "study", (), limit=story.price_of_safety), {}) == story.UNKNOWN


def test_what_holds_in_part_is_shown_where_nothing_failed(story):
    row = story.Row("data", "use", "study", ())
    in_part = {**CLAIMS[1], "verdict": "partly"}
    undecided = {**CLAIMS[1], "verdict": "undecided"}
    assert story.fails(row, {"claims": [CLAIMS[0], undecided]}).startswith("[undecided]")
    assert story.fails(row, {"claims": [CLAIMS[0], in_part]}).startswith(
        "[partly](studies/study/README.md): less is more"
    )
    assert story.fails(row, {"claims": [in_part, CLAIMS[1]]}).startswith("[not reproduced]")


def test_claims_are_counted_by_verdict(story):
    papers = ("P", "P", "Q", story.OURS)
    listed = [story.ListedClaim(str(n), paper, "here", "so.", (f"study/{n}",), None) for n, paper in enumerate(papers)]
    findings = {f"study/{n}": story.Finding(verdict, "") for n, verdict in ((0, "not"), (1, "reproduced"), (3, "not"))}
    assert story.claims_count(listed, findings) == (
        "3 claims of the papers it stands on: 1 reproduced, 1 not, 1 not measured; 1 claims of our own: 1 not"
    )


def test_a_study_that_was_run_has_the_figures_that_its_row_names(story):
    found = story.read_results()
    for row in story.ROWS:
        made = {claim["id"] for claim in found.get(row.study, {}).get("claims", [])}
        assert not made or not row.claims or made & set(row.claims), row.study


def test_results_are_found_by_study(story, tmp_path):
    (tmp_path / "some_study").mkdir()
    (tmp_path / "some_study" / "results.json").write_text(json.dumps({"claims": CLAIMS}))
    assert story.read_results(tmp_path) == {"some_study": {"claims": CLAIMS}}


def test_the_story_is_in_the_first_lines_of_the_readme():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    parts = (
        "Which batch size",
        "![",
        "make demo",
        "make test",
        "NoiseMonitor",
        "where it fails",
        "claims of the papers",
    )
    for part in parts:
        assert part in first
    assert first.rstrip().splitlines()[-1].startswith("| a policy")


def test_a_command_takes_the_picture_from_the_demo_s_report():
    rule = (ROOT / "Makefile").read_text().partition("\npicture:")[2].partition("\n\n")[0]
    assert "docs/images/digits.png" in rule
    assert "demo/probe.html" in rule
