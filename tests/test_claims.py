"""No claim is missing: what studies find is on the list, what is listed is on the page, and the page is current."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pages = load("claims_page")
LISTED, FINDINGS = pages.read_listed(), pages.read_findings()
PAGE = ROOT / "docs" / "claims.md"
# each table, figure and result that the papers' digests name, beside the sentences of the abstracts: how many claims
PLACES = {
    "Papini et al. 2017": {
        "theory": 2,
        "main table": 1,
        "table of improvement rates": 1,
        "figure 1": 2,
        "figure 2": 1,
        "runs behind figures 1 and 2": 2,
    },
    "Papini et al. 2022": {
        "LQ experiment": 1,
        "cart-pole experiment": 1,
    },
    "Hoffer et al. 2017": {
        "table 1, F1 on MNIST": 1,
        "table 1, C1 on CIFAR-10": 1,
        "table 1, ResNet44 on CIFAR-10": 1,
        "table 1, VGG on CIFAR-10": 1,
        "table 1, C3 on CIFAR-100": 1,
        "table 1, WResNet16-4 on CIFAR-100": 1,
        "table 2, AlexNet on ImageNet": 1,
        "figure 1": 1,
        "figure 2": 1,
        "figure 3": 1,
        "section 4": 2,
        "slides": 1,
    },
    "Wang et al. 2018": {
        "abstract of the first version": 2,
        "table, ResNet-50 on ImageNet": 1,
        "training curves, micro-batch 2": 1,
        "training curves, batch 128": 1,
        "training curves": 1,
        "authors' note": 1,
        "further experiments": 2,
        "table, ResNet-50 on ImageNet, batch 4, and later work": 1,
    },
    "Xue et al. 2022": {
        "table of the repository": 1,
        "table of SGD, Faster R-CNN": 1,
        "table of SGD, Mask R-CNN": 1,
        "table of SGD, Semantic FPN": 1,
        "table of SGD, Panoptic FPN": 1,
        "table of AdamW, Faster R-CNN": 2,
        "extremes, RetinaNet R-18": 1,
        "extremes, UniNet-G": 1,
        "ablations": 3,
        "figure 1": 4,
        "appendix": 2,
        "figure 5": 1,
        "derived here": 4,
    },
}


def claim(*studies, why=None, id_="a", paper="P"):
    return pages.ListedClaim(id_, paper, "table 1", "more | is less", studies, why)


def findings(**verdicts):
    return {f"study/{name}": pages.Finding(verdict, "1 < 2") for name, verdict in verdicts.items()}


def test_the_list_has_each_id_once_and_every_claim_says_where_it_is_measured_or_why_not():
    assert len({claim.id for claim in LISTED}) == len(LISTED) > 90
    for listed in LISTED:
        assert listed.studies or listed.why, listed.id
        assert listed.statement.endswith((".", "%.")), listed.id


def test_all_papers_are_on_the_list_with_each_sentence_of_their_abstracts():
    sentences = {
        "Papini et al. 2017": 5,
        "Papini et al. 2022": 7,
        "Hoffer et al. 2017": 11,
        "Wang et al. 2018": 8,
        "Xue et al. 2022": 12,
    }
    for paper, count in sentences.items():
        places = {listed.where for listed in LISTED if listed.paper == paper}
        assert {f"abstract, sentence {number}" for number in range(1, count + 1)} <= places


def test_all_tables_and_figures_of_the_papers_are_on_the_list():
    for paper, places in PLACES.items():
        listed = Counter(listed.where for listed in LISTED if listed.paper == paper)
        assert {place: count for place, count in listed.items() if "abstract, sentence" not in place} == places


def test_every_claim_of_every_study_is_on_the_list():
    assert pages.unlisted(LISTED, FINDINGS) == [], "add them to a claim of studies/claims.json"


def test_studies_named_on_the_list_are_there():
    folders = {study.split("/")[0] for listed in LISTED for study in listed.studies}
    assert folders
    for folder in folders:
        assert (ROOT / "studies" / folder / "run.py").exists()


def test_a_claim_named_on_the_list_is_one_that_its_study_can_make():
    for listed in LISTED:
        for study in listed.studies:
            folder, id_ = study.split("/")
            source = "".join(path.read_text() for path in (ROOT / "studies" / folder).glob("*.py"))
            stem = id_.rsplit("-", 1)[0] + "-{"  # ids made for each batch size or kind
            assert f'"{id_}"' in source or f'"{stem}' in source, study


def test_every_listed_claim_is_on_the_page_with_its_verdict():
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.read_text().splitlines()}
    for listed in LISTED:
        assert f"| {listed.where} | {pages.judge(listed, FINDINGS)} |" in rows[listed.id]


def test_the_page_is_current():
    assert pages.claims_page(LISTED, FINDINGS) == PAGE.read_text(), "run: make docs"


def test_a_finding_that_nothing_names_is_found():
    assert pages.unlisted([claim("study/a")], findings(a="not", b="not", c="not")) == ["study/b", "study/c"]


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ({}, "not measured"),
        ({"a": "reproduced", "b": "reproduced"}, "reproduced"),
        ({"a": "not", "b": "not"}, "not"),
        ({"a": "not"}, "unfinished"),
        ({"a": "reproduced"}, "unfinished"),
        ({"a": "reproduced", "b": "not"}, "partly"),
        ({"a": "reproduced", "b": "undecided"}, "partly"),
        ({"a": "undecided", "b": "not"}, "not"),
        ({"a": "undecided", "b": "undecided"}, "undecided"),
        ({"a": "partly", "b": "partly"}, "partly"),
        ({"other": "reproduced"}, "not measured"),
    ],
)
def test_findings_are_joined_in_one_verdict(verdicts, verdict):
    assert pages.judge(claim("study/a", "study/b"), findings(**verdicts)) == verdict


def test_the_page_shows_figures_what_is_not_run_and_why():
    page = pages.claims_page([claim("study/a", "study/b", why="needs a GPU")], findings(a="not"))
    assert "more \\| is less" in page
    assert "[a](../studies/study/README.md): not, 1 < 2<br>not yet run: b<br>needs a GPU" in page
    assert "| P | 0 | 0 | 0 | 0 | 1 | 0 |" in page
    assert "| all | 0 | 0 | 0 | 0 | 1 | 0 |" in page


def test_findings_are_read_from_the_results_of_each_study(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        claims = [{"id": "x", "verdict": "not", "ours": name}]
        (tmp_path / name / "results.json").write_text(json.dumps({"claims": claims}))
    assert pages.read_findings(tmp_path)["two/x"] == pages.Finding("not", "two")
