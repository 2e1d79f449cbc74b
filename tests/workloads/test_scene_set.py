"""Scenes: what a seed makes, and what is annotated of it."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anybatch import InputError
from anybatch.workloads.coco_format import export_coco, run_lengths, to_coco
from anybatch.workloads.scene_set import Layout, SceneSet

LABELS = torch.tensor([0, 1, 2])


def items():
    """Return a full square, a narrow bar and a disc."""
    grid = torch.arange(28) - 13.5
    square = torch.full((28, 28), 250)
    bar = square * (grid.abs() < 4)
    disc = square * (grid[:, None] ** 2 + grid**2 < 150)
    return torch.stack([square, bar, disc])[:, None].to(torch.uint8)


def scenes(num_scenes=20, seed=0, **layout):
    return SceneSet(items(), LABELS, num_scenes=num_scenes, seed=seed, layout=Layout(**layout))


@given(st.integers(0, 19), st.integers(0, 5))
def test_instances_are_disjoint_and_boxes_are_their_extent(index, seed):
    image, target = scenes(seed=seed)[index]
    masks, boxes = target["masks"], target["boxes"]
    assert image.min() >= 0
    assert image.max() <= 1
    assert len(masks) == len(boxes) == len(target["labels"]) >= 1
    assert masks.sum(0).max() == 1
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        edges = mask[y1:y2, x1], mask[y1:y2, x2 - 1], mask[y1, x1:x2], mask[y2 - 1, x1:x2]
        assert all(edge.any() for edge in edges)
    semantic = (masks * target["labels"][:, None, None]).sum(0)
    assert torch.equal(semantic, target["semantic"])


def test_a_scene_depends_on_seed_and_index_alone():
    ahead = scenes(seed=3)
    first = ahead[7]
    _ = ahead[2], torch.rand(1)
    again = scenes(num_scenes=400, seed=3)[7]
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    assert not torch.equal(first[0], ahead[8][0])
    assert not torch.equal(first[0], scenes(seed=4)[7][0])


def test_of_each_item_a_quarter_stays_visible_however_crowded():
    crowded = scenes(num_scenes=30, num_items=(12, 12), item_sizes=(40, 48))
    squares = [
        mask.sum() / max(x2 - x1, y2 - y1) ** 2
        for _, target in crowded
        for mask, label, (x1, y1, x2, y2) in zip(
            target["masks"], target["labels"], target["boxes"].tolist(), strict=True
        )
        if label == 1 and max(x2 - x1, y2 - y1) >= 40
    ]
    assert len(squares) > 10
    assert min(squares) >= 0.22  # a quarter of the whole square, whose extent may have shrunk a little
    assert min(squares) < 0.7  # and there is overlap at all


def test_covered_ground_belongs_to_the_later_item():
    counts = [len(target["labels"]) for _, target in scenes(num_scenes=60)]
    assert set(counts) >= {2, 4, 6}
    assert max(counts) <= 7


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"num_items": (3, 2)}, r"num_items of a Layout must be \(fewest, most\), from 1; got \(3, 2\)"),
        ({"item_sizes": (0, 2)}, "item_sizes of a Layout must be"),
        ({"size": 32}, "must fit its size 32"),
    ],
)
def test_a_layout_that_cannot_be_drawn_is_refused(layout, said):
    with pytest.raises(InputError, match=said):
        Layout(**layout)


def test_items_and_lengths_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match=r"images must be uint8 of shape \(M, 1, h, w\)"):
        SceneSet(items().float(), LABELS, num_scenes=1, seed=0)
    with pytest.raises(InputError, match="num_scenes must be at least 1; got 0"):
        scenes(num_scenes=0)
    with pytest.raises(IndexError):
        scenes()[20]


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_run_lengths_give_the_mask_back(pixels):
    mask = torch.tensor(pixels).view(2, 3)
    counts = run_lengths(mask)
    flat = torch.cat([torch.full((count,), index % 2) for index, count in enumerate(counts)])
    assert torch.equal(flat.view(3, 2).T.bool(), mask)


def test_an_export_is_read_back_by_another_tool(tmp_path):
    library = pytest.importorskip("faster_coco_eval")
    transforms = pytest.importorskip("torchvision.transforms.functional")
    pictures = pytest.importorskip("PIL.Image")

    data = scenes(num_scenes=3)
    path = export_coco(data, ["square", "bar", "disc"], tmp_path / "out")
    records = json.loads(path.read_text())
    assert records == json.loads(json.dumps(to_coco([target for _, target in data], ["square", "bar", "disc"])))
    coco = library.COCO(str(path))
    for image_id in (1, 2, 3):
        image, target = data[image_id - 1]
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [annotation["category_id"] for annotation in found] == target["labels"].tolist()
        for annotation, mask in zip(found, target["masks"], strict=True):
            assert (torch.as_tensor(coco.annToMask(annotation)) == mask).all()
        with pictures.open(path.parent / f"{image_id:06d}.png") as picture:
            written = transforms.to_tensor(picture)
        assert (written - image).abs().max() <= 0.5 / 255 + 1e-6


def test_an_export_to_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder of the export must be writable"):
        export_coco(scenes(num_scenes=1), ["a", "b", "c"], tmp_path / "file" / "out")
