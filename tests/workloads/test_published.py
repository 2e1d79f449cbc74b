"""The workloads of Hoffer et al. 2017: their regimes as published, and their data read from the real file formats.

The datasets are small ones that the tests write. torchvision checks the checksums of CIFAR's files and of MNIST's
archives; it is given those of the small files, so that its check runs.
"""

import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate
from workloads.image_files import accept_mnist, write_cifar, write_folders, write_mnist

from anybatch import InputError
from anybatch.registry import WORKLOADS
from anybatch.workload import Milestones
from anybatch.workloads import cifar, imagenet, load_workload, mnist
from anybatch.workloads.images import ImageTensors
from anybatch.workloads.networks import C1, C3, F1, AlexNet, ResNet44, WResNet16x4

DATA = Path(os.environ.get("ANYBATCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
PUBLISHED = {
    "f1-mnist": ("MNIST", mnist.f1_mnist),
    "f1-fashion-mnist": ("FashionMNIST", mnist.f1_fashion_mnist),
    "c1-cifar10": ("CIFAR10", cifar.c1_cifar10),
    "resnet44-cifar10": ("CIFAR10", cifar.resnet44_cifar10),
    "c3-cifar100": ("CIFAR100", cifar.c3_cifar100),
    "wresnet16-4-cifar100": ("CIFAR100", cifar.wresnet16_4_cifar100),
    "alexnet-imagenet": ("ImageNet", imagenet.alexnet_imagenet),
}
in_memory = pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "alexnet-imagenet"])


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Write the data of a workload; return the folder, and training pixels and labels where they are in memory."""

    def write(name):
        dataset = PUBLISHED[name][0]
        if dataset == "ImageNet":
            write_folders(tmp_path / "train")
            write_folders(tmp_path / "val", per_class=1)
            return tmp_path, None, None
        if dataset.startswith("CIFAR"):
            return tmp_path, *write_cifar(monkeypatch, tmp_path, dataset)
        pixels, labels = write_mnist(tmp_path, dataset)
        return tmp_path, pixels[:, None], labels.tolist()

    return write


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# regimes


@pytest.mark.parametrize(
    ("name", "model", "sgd", "rates", "epochs", "base_batch_size"),
    [
        ("f1-mnist", F1, (0.9, 1e-4), {0: 0.1, 10: 0.01, 20: 0.001, 30: 0.0001}, 50, 128),
        ("f1-fashion-mnist", F1, (0.9, 1e-4), {0: 0.1, 10: 0.01, 20: 0.001, 30: 0.0001}, 50, 128),
        ("c1-cifar10", C1, (0.0, 5e-4), {0: 0.001, 60: 0.01, 120: 0.001, 180: 0.0001}, 200, 128),
        ("c3-cifar100", C3, (0.0, 5e-4), {0: 0.001, 60: 0.01, 120: 0.001, 180: 0.0001}, 200, 128),
        ("resnet44-cifar10", ResNet44, (0.9, 1e-4), {0: 0.1, 81: 0.01}, 100, 128),
        ("wresnet16-4-cifar100", WResNet16x4, (0.9, 1e-4), {0: 0.1, 60: 0.02}, 100, 256),
    ],
)
def test_a_regime_is_the_published_one(written, name, model, sgd, rates, epochs, base_batch_size):
    workload = load_workload(name, data_root=written(name)[0])
    assert (workload.name, workload.epochs, workload.base_batch_size) == (name, epochs, base_batch_size)
    net = workload.model()
    assert type(net) is model
    (group,) = workload.optimizer(net).param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (*sgd, False)
    assert len(group["params"]) == len(list(net.parameters()))
    assert isinstance(workload.schedule, Milestones)
    assert workload.schedule.epochs == tuple(rates)[1:]
    assert workload.schedule.epochs[-1] < workload.epochs
    for epoch, rate in rates.items():
        assert group["lr"] * workload.schedule.factor(epoch) == pytest.approx(rate)


def test_the_regime_of_alexnet_ends_weight_decay_at_epoch_15(written):
    workload = load_workload("alexnet-imagenet", data_root=written("alexnet-imagenet")[0])
    assert (workload.model, workload.base_batch_size, workload.epochs) == (AlexNet, 128, 30)
    optimizer = workload.optimizer(nn.Linear(2, 1))
    assert optimizer.param_groups[0]["momentum"] == 0.9
    seen = list(_rates_and_decays(workload, optimizer, 30))
    expected = {0: (0.01, 5e-4), 10: (0.005, 5e-4), 15: (0.001, 0), 20: (0.0005, 0), 25: (0.0001, 0)}
    for epoch, pair in enumerate(seen):
        assert pair == pytest.approx(expected[max(start for start in expected if start <= epoch)])


def test_the_regime_of_alexnet_resumes(written, tmp_path):
    workload = load_workload("alexnet-imagenet", data_root=written("alexnet-imagenet")[0])
    model = nn.Linear(2, 1)
    optimizer = workload.optimizer(model)
    scheduler = workload.schedule(optimizer)
    for _ in range(17):
        optimizer.step()
        scheduler.step()
    torch.save((optimizer.state_dict(), scheduler.state_dict()), tmp_path / "state.pt")
    of_optimizer, of_scheduler = torch.load(tmp_path / "state.pt", weights_only=True)
    other = workload.optimizer(model)
    resumed = workload.schedule(other)
    other.load_state_dict(of_optimizer)
    resumed.load_state_dict(of_scheduler)
    for _ in range(5):
        for each in (optimizer, scheduler, other, resumed):
            each.step()
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        assert other.param_groups[0]["weight_decay"] == 0


def _rates_and_decays(workload, optimizer, num_epochs):
    scheduler = workload.schedule(optimizer)
    for _ in range(num_epochs):
        yield optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]
        optimizer.step()
        scheduler.step()


# data


@in_memory
def test_images_are_read_as_they_were_written(written, name):
    root, pixels, labels = written(name)
    workload = load_workload(name, data_root=root)
    assert isinstance(workload.train_set, ImageTensors)
    assert (workload.train_set.images.numpy() == pixels).all()
    assert workload.train_set.labels.dtype == torch.int64
    assert workload.train_set.labels.tolist() == labels
    assert 2 <= len(workload.eval_set) < len(workload.train_set)


@in_memory
def test_a_batch_of_it_can_be_learnt_from(written, name):
    workload = load_workload(name, data_root=written(name)[0])
    indices = np.arange(4)
    torch.manual_seed(0)
    model = workload.model()
    loss = workload.loss(model, workload.train_set.fetch_batch(indices, indices.astype(np.uint64)))
    loss.backward()
    assert loss.isfinite()
    metric = workload.metric()
    metric.update(model.eval(), default_collate([workload.eval_set[index] for index in range(2)]))
    assert 0 <= metric.compute()["accuracy"] <= 1


@in_memory
def test_training_images_are_augmented_and_others_are_not(written, name):
    root, pixels, _ = written(name)
    function = PUBLISHED[name][1]
    own = np.arange(40, dtype=np.uint64)
    same = np.zeros(40, dtype=np.int64)
    varied, _ = function(data_root=root).train_set.fetch_batch(same, own)
    for plain_set in (function(data_root=root, augment=False).train_set, function(data_root=root).eval_set):
        plain, _ = plain_set.fetch_batch(same, own)
        assert plain.unique(dim=0).shape[0] == 1
    assert varied.unique(dim=0).shape[0] > 20
    assert varied.shape[1:] == pixels.shape[1:]


def test_mnist_is_normalized_and_padded_as_published(written):
    root, pixels, _ = written("f1-mnist")
    own = np.arange(40, dtype=np.uint64)
    images, _ = mnist.f1_mnist(root).train_set.fetch_batch(np.zeros(40, dtype=np.int64), own)
    plain, _ = mnist.f1_mnist(root).eval_set.fetch_batch(np.arange(4), own[:4])
    assert (plain.min(), plain.max()) == (-1, 1)
    expected = torch.tensor(pixels[0, 0]).float() / 255 * 2 - 1
    padded = nn.functional.pad(expected, (2, 2, 2, 2), value=-1)
    windows = padded.unfold(0, 28, 1).unfold(1, 28, 1).reshape(25, 28, 28)
    both = torch.cat([windows, windows.flip(-1)])
    assert all(torch.isclose(both, image, atol=1e-6).all(-1).all(-1).sum() == 1 for image in images[:, 0])


def test_cifar_is_padded_by_four_with_grey(written):
    root, _, _ = written("c1-cifar10")
    own = np.arange(300, dtype=np.uint64)
    images, _ = cifar.c1_cifar10(root).train_set.fetch_batch(np.zeros(300, dtype=np.int64), own)
    grey = (127 / 255 - torch.tensor(cifar.IMAGENET_MEAN)) / torch.tensor(cifar.IMAGENET_STD)
    rows = (images[..., 16] - grey.view(3, 1)).abs().amax(1) < 1e-6  # whole rows of padding, of (300, 32)
    assert rows[:, :4].all(1).any()
    assert rows[:, 28:].all(1).any()
    assert not rows[:, 4:28].all(1).any()


def test_archives_of_mnist_are_unpacked(monkeypatch, tmp_path, offline):
    pixels, _ = write_mnist(tmp_path, "MNIST", compressed=True)
    accept_mnist(monkeypatch, tmp_path / "MNIST" / "raw", "MNIST")
    workload = load_workload("f1-mnist", data_root=tmp_path)
    assert (workload.train_set.images.numpy()[:, 0] == pixels).all()


def test_folders_of_imagenet_are_read_cropped_and_normalized(written):
    root, _, _ = written("alexnet-imagenet")
    workload = load_workload("alexnet-imagenet", data_root=root)
    assert (workload.num_samples, len(workload.eval_set)) == (4, 2)
    torch.manual_seed(0)
    image, label = workload.train_set[3]
    assert (image.shape, image.dtype, label) == ((3, 224, 224), torch.float32, 1)
    assert torch.stack([workload.train_set[3][0] for _ in range(6)]).unique(dim=0).shape[0] > 2  # not only mirrored
    assert torch.equal(workload.eval_set[1][0], workload.eval_set[1][0])
    plain = imagenet.alexnet_imagenet(root, augment=False)
    assert torch.equal(plain.train_set[0][0], plain.train_set[0][0])
    assert image.mean(dim=(1, 2)).abs().max() < 0.6


def test_a_workload_in_memory_can_be_sent_to_another_process(written):
    workload = load_workload("f1-mnist", data_root=written("f1-mnist")[0])
    other = pickle.loads(pickle.dumps(workload))
    assert torch.equal(other.train_set.images, workload.train_set.images)
    assert type(other.model()) is F1


@pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason=f"no FashionMNIST in {DATA}")
def test_fashion_mnist_is_read_whole():
    workload = load_workload("f1-fashion-mnist", data_root=DATA)
    assert (workload.num_samples, len(workload.eval_set)) == (60_000, 10_000)
    assert workload.train_set.labels.bincount().tolist() == [6000] * 10


# what is missing


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_data_or_network_the_folder_is_named(offline, tmp_path, name):
    title = {"MNIST": "MNIST", "FashionMNIST": "Fashion-MNIST", "CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100"}
    dataset = PUBLISHED[name][0]
    message = (
        rf"^{title.get(dataset, dataset)} is not in {tmp_path} and (could not|cannot) be downloaded\. Pass --data-"
    )
    with pytest.raises(InputError, match=message):
        load_workload(name, data_root=tmp_path)


def test_what_the_folder_must_hold_is_said(offline, tmp_path):
    for name, holds in (
        ("f1-mnist", r"holds MNIST/raw\."),
        ("c1-cifar10", r"holds cifar-10-batches-py\."),
        ("c3-cifar100", r"holds cifar-100-python\."),
        ("alexnet-imagenet", r"holds train and val, each with a folder of images per class\."),
    ):
        with pytest.raises(InputError, match=holds):
            load_workload(name, data_root=tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_torchvision_the_command_that_installs_it_is_said(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match=r"needs torchvision. Run: pip install 'anybatch\[vision\]'"):
        load_workload(name, data_root=tmp_path)


def test_other_classes_in_val_are_refused(tmp_path):
    write_folders(tmp_path / "train", ("a", "b"))
    write_folders(tmp_path / "val", ("a", "c"))
    with pytest.raises(InputError, match=r"train and val in .* must hold the same classes; got 2 and 2, not all of"):
        load_workload("alexnet-imagenet", data_root=tmp_path)


def test_default_data_root_is_the_folder_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", "MNIST")
    assert load_workload("f1-mnist").num_samples == 6


def test_the_documentation_lists_every_built_in_workload():
    page = Path(__file__).parents[2] / "docs" / "workloads.md"
    built_in = page.read_text().partition("## Built in")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", built_in, re.MULTILINE)) == set(WORKLOADS)
