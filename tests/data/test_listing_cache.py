"""What a run keeps of its images: used where every file is as it was, and nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.config.pretrain import PretrainConfig
from beit.data.base import Source
from beit.data.sources import holdout, listing
from beit.data.sources.cache import ImageCache
from beit.data.sources.holdout import Holdout
from beit.data.sources.listing import list_data
from beit.data.sources.opening import open_splits
from beit.stages.session import Images, open_images
from beit.training.run.directory import LISTING


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade % 256, shade // 256, 50)).save(buffer, "BMP")  # of one length, whatever it shows
    return buffer.getvalue()


@pytest.fixture(params=["folder", "tars"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> PretrainConfig:
    """Sixty images in two classes; a start on them has left what it found out."""
    data = tmp_path / "data"
    data.mkdir()
    pictures = {f"{'ab'[i % 2]}/{i:02d}.bmp": picture(i) for i in range(60)}
    if request.param == "folder":
        for path, content in pictures.items():
            (data / path).parent.mkdir(exist_ok=True)
            (data / path).write_bytes(content)
    else:
        for shard in range(2):
            with tarfile.open(data / f"{shard}.tar", "w") as tar:
                for path, content in list(pictures.items())[shard::2]:
                    for name, part in ((path, content), (path.replace("bmp", "cls"), b"%d" % shard)):
                        info = tarfile.TarInfo(name)
                        info.size = len(part)
                        tar.addfile(info, io.BytesIO(part))
    config = PretrainConfig(data=str(data), out=str(tmp_path / "run"), target="pixels", steps=1)
    Path(config.out).mkdir()
    save(open_images(config), config)
    return config


def save(images: Images, config: PretrainConfig) -> None:
    images.holdout.cache.save(Path(config.out, LISTING))


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def content(images: Images) -> list[object]:
    """All that a run could tell apart."""
    return [keys(images.train), keys(images.held_back), images.fingerprint, images.train.notes]


def anew(config: PretrainConfig) -> list[object]:
    """What a start without a cache finds."""
    return content(open_images(replace(config, out=str(Path(config.out, "elsewhere")))))


def forbid(patch: pytest.MonkeyPatch) -> None:
    """Nothing is chosen or compared again, and no tar opened."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was found out before")

    patch.setattr(holdout, "choose_held_back", fail)
    patch.setattr(holdout, "equal_images", fail)
    patch.setattr(listing.tarfile, "open", fail)


def test_a_start_takes_what_an_earlier_one_found_out(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = anew(config)
    forbid(monkeypatch)
    images = open_images(config)
    assert content(images) == expected and len(images.held_back) == 12
    written = os.stat(Path(config.out, LISTING)).st_mtime_ns
    save(images, config)
    assert os.stat(Path(config.out, LISTING)).st_mtime_ns == written
    os.remove(Path(config.out, LISTING))  # as --overwrite does
    save(images, config)
    assert content(open_images(config)) == expected
    with pytest.raises(AssertionError, match="found out before"):  # of other choices nothing is known
        open_images(replace(config, holdout=0.5))


@pytest.mark.parametrize("change", ["content", "length", "another", "one less", "time"])
def test_a_changed_file_is_noticed(change: str, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image to train on that is made a copy of a held-back one goes where that goes, as if there was no cache."""
    images, data = open_images(config), Path(config.data)
    if any(data.glob("*.tar")):
        tar = data / "0.tar"
        whole = tar.read_bytes()
        if change in ("another", "one less"):
            pytest.skip("of folders")
        if change != "time":
            place = whole.index(b"BM") + (60 if change == "content" else 0)
            tar.write_bytes(whole[:place] + b"x" + whole[place + 1 :] + b"\0" * 512 * (change == "length"))
    else:
        file = data / images.train.key(0)
        if change == "one less":
            file.unlink()
        elif change != "time":
            file = file.with_name("new.bmp") if change == "another" else file
            file.write_bytes((data / images.held_back.key(0)).read_bytes() + b"\0" * (change == "length"))
            copies = {file.relative_to(data).as_posix(), images.held_back.key(0)}
            assert change == "length" or len(copies & {*keys(open_images(config).train)}) != 1
    if change == "time":
        for path in data.rglob("*.*"):
            os.utime(path, ns=(1, 1))
    assert content(open_images(config)) == anew(config)
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="found out before"):
        open_images(config)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "a bit in an array", "a bit at the end", "other words", "a folder"]
)
def test_a_damaged_cache_is_not_used(damage: str, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(config.out, LISTING)
    whole = bytearray(file.read_bytes())
    if damage == "a bit in an array":
        with np.load(file) as arrays:
            first = arrays[arrays.files[0]].tobytes()
        whole[whole.index(first) + len(first) // 2] ^= 4
    elif damage == "a bit at the end":
        whole[-3] ^= 4
    parts = {"empty": b"", "cut": whole[: len(whole) // 2], "words": b"PK\3\4" + b"x" * 500}
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        file.write_bytes(parts.get(damage, whole))
    images = open_images(config)
    assert content(images) == anew(config)
    if damage != "a folder":
        save(images, config)
        forbid(monkeypatch)
        assert content(open_images(config)) == content(images)


def test_labels_decide_what_is_held_back(tmp_path: Path) -> None:
    """Classes of a file that has changed are not those that were chosen by."""
    for i in range(40):
        (tmp_path / f"{i:02d}.bmp").write_bytes(picture(i))
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{i:02d}.bmp,{'xy'[i % 2]}\n" for i in range(40)))
    run = tmp_path / "run"
    config = PretrainConfig(data=str(tmp_path), labels=str(labels), out=str(run), target="pixels", steps=1)
    run.mkdir()
    save(open_images(config), config)
    labels.write_text("".join(f"{i:02d}.bmp,{'xy'[i < 4]}\n" for i in range(40)))
    assert content(open_images(config)) == anew(config)


def test_a_name_takes_few_bytes(tmp_path: Path) -> None:
    """Listed 71 bytes, and an object for each took 161; opened as a labelled source 210 at most, and took 380."""
    count = 20_000
    for number in range(count):
        folder = f"{tmp_path}/class{number // 2000}"
        if number % 2000 == 0:
            os.mkdir(folder)
        os.close(os.open(f"{folder}/image{number:07d}.jpg", os.O_CREAT))
    tracemalloc.start()
    try:
        [listed] = list_data([str(tmp_path)], ImageCache())
        kept, most = tracemalloc.get_traced_memory()
        assert len(listed.members) == count and kept < 90 * count and most < 130 * count
        tracemalloc.reset_peak()
        splits = open_splits([str(tmp_path)], holdout=Holdout(0), labeled=True)
        assert len(splits["train"]) == count and tracemalloc.get_traced_memory()[1] - kept < 280 * count
    finally:
        tracemalloc.stop()
