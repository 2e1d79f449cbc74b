"""Small datasets in the formats that torchvision reads, written to disk."""

import gzip
import hashlib
import pickle

import numpy as np
from PIL import Image
from torchvision import datasets


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(root, name, *, num_train=6, num_test=4, compressed=False):
    """Files of MNIST's format (idx) below root/name/raw; returns the training pixels and labels."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    made = {}
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        made[prefix] = random_pixels(count, 28, 28), np.arange(count, dtype=np.uint8)
        for kind, array in zip(("images-idx3", "labels-idx1"), made[prefix], strict=True):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            path = folder / f"{prefix}-{kind}-ubyte"
            if compressed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
            else:
                path.write_bytes(header + array.tobytes())
    return made["train"]


def accept_mnist(monkeypatch, folder, name):
    """Make torchvision expect the checksums of these small archives instead of those of the real ones."""
    dataset = getattr(datasets, name)
    resources = [(file, _md5(folder / file)) for file, _ in dataset.resources]
    monkeypatch.setattr(dataset, "resources", resources)


def write_cifar(monkeypatch, root, name):
    """Pickles of CIFAR's format, whose checksums torchvision is made to expect; returns training pixels and labels."""
    dataset = getattr(datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    made = []
    for files in ("train_list", "test_list"):
        checksums = []
        for number, (file, _) in enumerate(getattr(dataset, files)):
            count = 10 // len(getattr(dataset, files)) if files == "train_list" else 2
            pixels, labels = random_pixels(count, 3072) ^ number, list(range(count))
            (folder / file).write_bytes(pickle.dumps({"data": pixels, key: labels}))
            checksums.append([file, _md5(folder / file)])
            made += [(pixels, labels)] if files == "train_list" else []
        monkeypatch.setattr(dataset, files, checksums)
    meta = folder / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: ["a", "b"]}))
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": _md5(meta)})
    pixels = np.concatenate([pixels for pixels, _ in made])
    return pixels.reshape(-1, 3, 32, 32), [label for _, labels in made for label in labels]


def write_folders(root, classes=("n01", "n02"), *, per_class=2, size=(300, 260)):
    """A folder of JPEG images per class, below root."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(random_pixels(size[1], size[0], 3)).save(root / name / f"{number}.JPEG")


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()
