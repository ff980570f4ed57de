"""`beit suggest`: the images to label stand for the others, have no label yet, and come as a table to fill in."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tiny_runs import finetune_config

from beit.config.errors import UserError
from beit.config.use import SuggestConfig
from beit.recipes.finetune import finetune
from beit.recipes.suggest import representatives, suggest


def test_representatives_are_one_of_each_group_the_largest_first() -> None:
    rng = torch.Generator().manual_seed(0)
    groups = torch.repeat_interleave(torch.eye(3, 8), torch.tensor([30, 20, 10]), dim=0)
    features = 5 * groups + 0.1 * torch.randn(60, 8, generator=rng)
    chosen = representatives(features, 3, rng)
    assert [size for _, size in chosen] == [30, 20, 10]
    assert [groups[index].argmax().item() for index, _ in chosen] == [0, 1, 2]


def test_a_table_to_fill_in_and_a_page(pretrained: Path, images: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "to-label.csv", tmp_path / "labels.csv"
    labels.write_text("image,class\n" + "".join(f"{index:02}.jpg,a\n" for index in range(30)))
    config = SuggestConfig(
        images=(str(images),), model=str(pretrained), number=6, labels=str(labels), out=str(out), workers=0
    )
    suggestions = suggest(config).results["suggestions"]
    rows = list(csv.reader(out.read_text().splitlines()))
    assert rows[0] == ["image", "class"] and rows[1:] == [[name, ""] for name, _ in suggestions]
    assert len({name for name, _ in suggestions}) == 6
    assert all(int(Path(name).stem) >= 30 for name, _ in suggestions), "the others have a label"
    page = out.with_suffix(".html").read_text()
    assert page.count("<img") == 6 and "stands for" in page
    labels.write_text("image,class\n" + "".join(f"{index:02}.jpg,a\n" for index in range(40)))
    with pytest.raises(UserError, match="has a label already"):
        suggest(config)


def test_a_classifier_names_what_it_is_unsure_of(colours: Path, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(finetune_config(colours, run, init=str(pretrained)))
    config = SuggestConfig(
        images=(str(colours / "val"),), model=str(run), number=4, out=str(tmp_path / "l.csv"), workers=0
    )
    reasons = [reason for _, reason in suggest(config).results["suggestions"]]
    assert [reason.startswith("unsure") for reason in reasons] == [True, True, False, False]
