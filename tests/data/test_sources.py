"""What --data may name: every layout, every split rule, and one clear line for every mistake."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.datasets
from PIL import Image

from beit.config.errors import UserError
from beit.data.base import Source
from beit.data.decode import ImageError
from beit.data.sources import files
from beit.data.sources.files import FileSource
from beit.data.sources.holdout import Holdout
from beit.data.sources.listing import list_images
from beit.data.sources.opening import open_images, open_splits
from beit.data.sources.subsets import limited

REAL = os.environ.get("BEIT_REAL_DATA")


def picture(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade % 256, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root: Path, *paths: str) -> Path:
    """Images (and whatever else is named) at `paths` beneath `root`."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


def pack(tar: Path, members: dict[str, bytes]) -> Path:
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tar


def keys(source: Source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def both(*data: object, holdout: float = 0.2, labeled: bool = False) -> tuple[Source, Source]:
    values = [str(value) for value in data]
    splits = open_splits(values, holdout=Holdout(holdout), labeled=labeled)
    return splits["train"], splits["val"]


def everything(root: object, **options: Any) -> Source:
    """All images of one folder or tar, none held back."""
    return open_splits([str(root)], holdout=Holdout(0), **options)["train"]


def mistake(*data: object, labeled: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        list(open_splits([str(value) for value in data], holdout=Holdout(0.2), labeled=labeled).values())
    assert "\n" not in str(caught.value) and "--data" in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------
# Folders


def test_flat_nested_hidden_and_upper_case(tmp_path: Path) -> None:
    write_images(tmp_path, "b.JPG", "a.png", "deep/er/c.Tiff", "notes.txt")
    write_images(tmp_path, ".hidden.jpg", ".git/d.jpg", "__MACOSX/e.jpg")
    source = everything(tmp_path)
    assert keys(source) == ["a.png", "b.JPG", "deep/er/c.Tiff"]
    assert source.image(0).shape == (3, 4, 6) and source.classes is None
    assert any("1 other file ignored (1 .txt)" in note for note in source.notes)
    assert source.name(2) == str(tmp_path / "deep/er/c.Tiff")
    assert "3 images" in source.describe()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = write_images(tmp_path / "outside", "x.png")
    root = write_images(tmp_path / "root", "a/one.png")
    (root / "link.png").symlink_to(outside / "x.png")
    (root / "folder").symlink_to(outside)
    (root / "a" / "loop").symlink_to(root)
    (root / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.png")
    source = everything(root)
    assert keys(source) == ["a/one.png", "dangling.png", "folder/x.png", "link.png"]
    with pytest.raises(ImageError, match=r"dangling\.png: No such file"):
        source.image(1)


def test_own_splits_win_and_siblings_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a.png", "train/b.png", "valid/c.png", "test/d.png", "extra/e.png", "f.png")
    train, held = both(tmp_path)
    assert (keys(train), keys(held)) == (["train/a.png", "train/b.png"], ["valid/c.png"])
    text = " ".join(train.notes)
    assert "extra/ ignored" in text and "loose images ignored" in text and "test/ ignored" not in text
    assert f"{tmp_path}: train is train/, val is valid/, test is test/" in train.notes


@pytest.mark.parametrize(
    ("train", "evaluation", "others"),
    [
        ("set-1.0/train/a.png", "set-1.0/val/b.png", []),
        ("images/training/a.jpg", "images/validation/b.jpg", ["annotations/training/a.png"]),
    ],
    ids=["wrapped", "ade20k"],
)
def test_layouts_of_archives(tmp_path: Path, train: str, evaluation: str, others: list[str]) -> None:
    write_images(tmp_path, train, evaluation, *others)
    sources = both(tmp_path)
    assert [keys(source) for source in sources] == [[train], [evaluation]]
    assert any("annotations" in note for note in sources[0].notes) == bool(others)


def test_an_evaluation_split_alone(tmp_path: Path) -> None:
    write_images(tmp_path, "val/cat/a.png", "val/dog/b.png")
    held = open_splits([str(tmp_path)], holdout=Holdout(0.2), labeled=True)["val"]
    assert held.classes == ("cat", "dog") and len(held) == 2
    assert open_splits([str(tmp_path)], holdout=Holdout()).keys() == {"val"}


def test_several_folders_are_joined_and_classes_meet_by_name(tmp_path: Path) -> None:
    kinds = {"one": ("cat", "dog"), "two": ("bird", "dog")}
    one, two = (
        write_images(tmp_path / name, *(f"{kind}/{i}.png" for kind in pair for i in range(20)))
        for name, pair in kinds.items()
    )
    train, held = both(one, two, labeled=True)
    assert train.classes == held.classes == ("bird", "cat", "dog")
    assert len(train) + len(held) == 80
    for source in (train, held):
        for i in range(len(source)):
            assert source.classes[source.label(i)] == source.name(i).split("/")[-2]


def test_limit_is_a_fixed_spread_choice(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{kind}/{i:02d}.png" for kind in "abcd" for i in range(50)))
    whole = everything(tmp_path, labeled=True)
    some = limited(whole, 40, 0)
    assert keys(some) == sorted(keys(some)) and len(some) == 40
    more = limited(whole, 80, 0)
    other = limited(whole, 40, 1)
    assert set(keys(some)) < set(keys(more)) and keys(other) != keys(some)
    assert min([some.label(i) for i in range(40)].count(c) for c in range(4)) >= 3


def test_images_that_fit_into_memory_together_are_decoded_once(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    listed = files.Files([list_images(str(tmp_path))], [])
    enough, short = (FileSource(listed, memory=2 * 3 * 6 * 4 - less) for less in (0, 1))
    before, _ = enough.image(0), short.image(0)
    usual = open_splits([str(tmp_path)], holdout=Holdout(0))["train"]
    usual.image(0)
    (tmp_path / "a.png").unlink()
    assert torch.equal(enough.image(0), before) and torch.equal(usual.image(0), before)
    with pytest.raises(ImageError):
        short.image(0)


def test_fingerprint_tells_when_files_come_or_go(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    first = everything(tmp_path).fingerprint
    assert first == everything(tmp_path).fingerprint
    write_images(tmp_path, "c.png")
    assert first != everything(tmp_path).fingerprint


def test_fingerprint_tells_when_contents_change_under_their_names(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    first = everything(tmp_path).fingerprint
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-1] + b"?")
    assert first != everything(tmp_path).fingerprint
    (tmp_path / "a.png").write_bytes(content)
    assert first == everything(tmp_path).fingerprint
    (tmp_path / "a.png").write_bytes(content + b"?")
    assert first != everything(tmp_path).fingerprint


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    source = everything(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.tar")
    for images in (source, open_images([str(tmp_path / "a.png")])):
        with pytest.raises(ImageError, match=r"a\.png: it is no regular file"):
            images.image(0)
    (tmp_path / "tars").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "tars" / "a.tar")
    assert "it is no regular file" in mistake(tmp_path / "tars")


def test_trouble_of_a_moment_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a.png")
    source = everything(tmp_path)
    whole, pauses, status = source.read(0), list[float](), os.stat
    troubles = iter([errno.EIO, errno.ESTALE, errno.EMFILE])

    def troubled(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("a.png") and (number := next(troubles, None)) is not None:
            raise OSError(number, os.strerror(number))
        return status(path, **options)

    monkeypatch.setattr(files.time, "sleep", pauses.append)
    monkeypatch.setattr(os, "stat", troubled)
    assert source.read(0) == whole and len(pauses) == 3
    troubles = iter([errno.EIO] * 4)
    with pytest.raises(ImageError, match="Input/output error"):
        source.read(0)
    troubles = iter([errno.EMFILE] * 4)
    with pytest.raises(MemoryError, match="Too many open files"):
        source.read(0)
    troubles = iter([errno.EACCES])
    with pytest.raises(ImageError, match="Permission denied"):
        source.read(0)
    assert len(pauses) == 9 and sum(pauses[:3]) < 10


def test_links_that_lead_nowhere_end_no_listing(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    for one, other in (("x", "y"), ("y", "x"), ("u.png", "v.png"), ("v.png", "u.png")):
        (tmp_path / one).symlink_to(other)
    source = everything(tmp_path)
    assert [source.key(index) for index in range(len(source))] == ["a.png", "u.png", "v.png"]


def test_a_tar_that_was_cut_at_a_border_is_told(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", {"a.png": picture(), "b.png": picture()})
    assert everything(tar).notes == []
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1].offset
    os.truncate(tar, last)
    assert everything(tar).notes == [f"{tar}: has no end mark; if it was cut short, fetch it again"]


def test_names_of_any_bytes_survive(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \n.png")
    write_images(tmp_path, odd)
    source = pickle.loads(pickle.dumps(everything(tmp_path)))
    assert source.image(0).shape == (3, 4, 6)
    assert source.name(0).isprintable()


# ------------------------------------------------------------------------------------------------------------
# Mistakes


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    flat = write_images(tmp_path / "flat", "a.png", "b.png")
    one = write_images(tmp_path / "one", "cat/a.png", "cat/b.png")
    stranger = write_images(tmp_path / "stranger", "train/cat/a.png", "train/dog/a.png", "val/cow/a.png")
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "no such folder" in mistake(tmp_path / "nowhere")
    assert "holds no image" in mistake(empty)
    assert "has no class folders" in mistake(flat, labeled=True)
    write_images(tmp_path / "split", "train/a/0.png", "train/b/0.png", "val/0.png")
    with pytest.raises(UserError, match=r"split/val/ has no class folders"):
        both(tmp_path / "split", labeled=True)
    assert "one class only" in mistake(one, labeled=True)
    assert "'cow'" in mistake(stranger, labeled=True)
    assert "unzip" in mistake(tmp_path / "x.zip")
    assert "name a folder" in mistake(flat / "a.png")

    def forbidden(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert "chmod" in mistake(flat)


def test_classes_of_a_model_bind(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/a.png", "dog/b.png")
    source = everything(tmp_path, labeled=True, classes=("cat", "dog"))
    assert source.label(0) == 1 and source.classes == ("cat", "dog")
    with pytest.raises(UserError, match="'dog'"):
        everything(tmp_path, labeled=True, classes=("cat", "cow"))


def test_a_folder_called_like_a_split_beside_classes_is_told(tmp_path: Path) -> None:
    notes = everything(write_images(tmp_path, "cat/a.png", "dog/a.png", "test/a.png")).notes
    assert notes == [f"{tmp_path}: test/ is a class like what lies beside (else say --layout splits)"]
    assert not everything(write_images(tmp_path / "cat", "b.png")).notes


# ------------------------------------------------------------------------------------------------------------
# Tars


def test_tars_and_their_unpacked_tree_are_the_same_set(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(12):
        kind = ("dog", "cat")[i % 2]
        members[f"train/{kind}/{i:02d}.cls"] = b"1" if kind == "dog" else b"0"
        members[f"train/{kind}/{i:02d}.png"] = picture(i)
    members["val/cat/99.cls"], members["val/cat/99.png"] = b"0", picture(99)
    pack(tmp_path / "tars" / "all.tar", members)
    with tarfile.open(tmp_path / "tars" / "all.tar") as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    for split in ("train", "val"):
        packed = open_splits([str(tmp_path / "tars")], holdout=Holdout(0.3), labeled=True)[split]
        loose = open_splits([str(tmp_path / "tree")], holdout=Holdout(0.3), labeled=True)[split]
        assert keys(packed) == keys(loose) and packed.classes == loose.classes == ("cat", "dog")
        for i in range(len(loose)):
            assert torch.equal(packed.image(i), loose.image(i)) and packed.label(i) == loose.label(i)
        assert packed.name(0).startswith(str(tmp_path / "tars" / "all.tar") + ":")


def test_ranges_of_shards_that_number_from_zero(tmp_path: Path) -> None:
    for shard in range(3):
        members = {}
        for i in range(4):
            members |= {f"{i:03d}.rgb.png": picture(10 * shard + i), f"{i:03d}.cls": str(shard).encode()}
        pack(tmp_path / f"s-{shard:02d}.tar", members)
    source = open_splits([f"{tmp_path}/s-{{00..02}}.tar"], holdout=Holdout(0), labeled=True)["train"]
    assert len(source) == len(set(keys(source))) == 12 and source.classes == ("0", "1", "2")
    shades = {(int(source.image(i)[0, 0, 0]) // 10, source.label(i)) for i in range(12)}
    assert shades == {(0, 0), (1, 1), (2, 2)}
    assert "1 of 4 shards missing" in mistake(f"{tmp_path}/s-{{00..03}}.tar")


def test_more_shards_than_a_process_can_have_open(tmp_path: Path) -> None:
    for shard in range(40):
        pack(
            tmp_path / f"{shard:02d}.tar",
            {f"{shard}.png": picture(shard), f"{shard}.cls": b"%d" % (shard % 2)},
        )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        train, held = both(tmp_path, labeled=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [train.label(i) for i in range(len(train))] == [int(key[:-4]) % 2 for key in keys(train)]
    assert len(train) + len(held) == 40


def test_folders_of_shards_per_split(tmp_path: Path) -> None:
    pack(tmp_path / "train" / "0.tar", {"a.png": picture(), "b.png": picture()})
    pack(tmp_path / "val" / "0.tar", {"a.png": picture()})
    train, held = both(tmp_path)
    assert (len(train), len(held)) == (2, 1)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused_with_the_command(tmp_path: Path, mode: str) -> None:
    name = tmp_path / f"x.tar.{mode}"
    with tarfile.open(name, f"w:{mode}") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    assert "unpack it: " in mistake(name)
    name.rename(tmp_path / "lies.tar")
    assert "is compressed with" in mistake(tmp_path / "lies.tar")


def test_hostile_tars_put_nothing_anywhere(tmp_path: Path) -> None:
    hostile = tmp_path / "inside" / "x.tar"
    hostile.parent.mkdir()
    with tarfile.open(hostile, "w") as archive:
        for name in ("../escape.png", "/etc/escape.png", "a/../../escape.png", "good.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            archive.addfile(info, io.BytesIO(picture()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    source = everything(hostile)
    assert keys(source) == ["good.png"] and source.image(0).shape == (3, 4, 6)
    text = " ".join(source.notes)
    assert "4 links, devices" in text and "3 paths that lead outside" in text
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "x.tar"]


def test_cut_and_lying_tars(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tar", {f"{i}.png": picture(i) for i in range(9)})
    source = everything(whole)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:1300])
    assert "damaged" in mistake(tmp_path / "cut.tar")
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    assert "damaged or no tar" in mistake(tmp_path / "no.tar")
    os.truncate(whole, 5000)  # shrinks during the run
    with pytest.raises(ImageError, match=r"whole\.tar:8\.png"):
        source.image(8)


def test_class_numbers_must_be_numbers(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"0.png": picture(), "0.cls": b"cat", "1.png": picture(), "1.cls": b"1"})
    assert "holds no class number" in mistake(tmp_path / "a.tar", labeled=True)
    pack(tmp_path / "b.tar", {"0.png": picture(), "0.cls": b"9" * 12})
    assert "holds no class number" in mistake(tmp_path / "b.tar", labeled=True)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 10 << 30)  # sparse: takes no disk
    with pytest.raises(ImageError, match="too many for an image"):
        everything(tmp_path).image(0)


# ------------------------------------------------------------------------------------------------------------
# Sets by name


class _TinyCifar:
    """torchvision's CIFAR10 as far as it matters here, without a download."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).numpy().astype("uint8")
        self.targets, self.classes = [1, 0], ["airplane", "automobile"]


def test_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", _TinyCifar)
    source = open_splits(["cifar10"], holdout=Holdout(0))["train"]
    assert source.image(1).shape == (3, 32, 32) and source.label(0) == 1
    assert source.image(0)[0, 0, 1] == 3  # the red of the second pixel
    write_images(tmp_path / "cifar10", "own.png")
    source = open_splits(["cifar10"], holdout=Holdout(0.1))["train"]
    assert isinstance(source, FileSource) and "existing path" in source.notes[0]

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("<urlopen error no route>")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", unreachable)
    assert "download" in mistake("cifar100") and "no route" in mistake("cifar100")


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_real_tars() -> None:
    train, held = both(f"{REAL}/flowers5", labeled=True)
    assert (len(train), len(held)) == (805, 337)
    assert train.classes == held.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert all(f"/{train.classes[train.label(i)]}/" in train.name(i) for i in range(0, 805, 50))
    streets = both(f"{REAL}/camvid")
    assert [len(part) for part in streets] == [367, 101]
