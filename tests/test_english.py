"""Messages read aloud: one image is no images."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from beit.config.values import counted

SRC = Path(__file__).parents[1] / "src" / "beit"
NOUNS = (
    "image file map block channel step epoch group pixel row line layer label code bit byte neighbour thread number "
    "head shard window mistake scene other run centre token frame class patch batch process"
)
PLURAL = re.compile(rf" (?:[a-z-]+ )??(?:{'|'.join(counted(2, noun)[2:] for noun in NOUNS.split())})\b")
COUNT = re.compile(r"(len|sum|round)\(|.*\b(count|total\(\))")
SEVERAL = {
    ("checkpoints/reading/torch_file.py", "len(names)"): "more than are read",
    ("checkpoints/remote.py", "length"): "of a file of weights",
    ("data/label_file.py", "len(classes)"): "two at least",
    ("data/label_file.py", "count"): "none or several: one is as it should be",
    ("data/label_maps/pairs.py", "len(self.classes)"): "two at least",
    ("data/label_maps/table.py", "count"): "more than can be told apart",
    ("data/label_maps/table.py", "len(names)"): "two at least",
    ("data/label_maps/table.py", "len(table.names)"): "two at least",
    ("data/loaders.py", "self._tried"): "a handful at least",
    ("data/loaders.py", "len(self.files)"): "a handful at least",
    ("data/sources/demo.py", "len(self)"): "thousands",
    ("data/sources/demo.py", "len(CLASSES)"): "ten",
    ("data/sources/files.py", "len(self)"): "part of a fingerprint, which must not change",
    ("data/sources/files.py", "available"): "more than an image has",
    ("data/sources/holdout.py", "size"): "two at least",
    ("data/sources/measure.py", "len(rasters)"): "of which some differ: more than one, or the verb says so",
    ("data/sources/splits.py", "len(names)"): "two at least",
    ("data/sources/subsets.py", "len(self)"): "two sources at least",
    ("data/sources/subsets.py", "len(self.classes or ())"): "two at least",
    ("recipes/evaluate/kinds.py", "len(names)"): "two at least",
    ("recipes/evaluate/run.py", "images"): "a handful at least",
    ("recipes/evaluate/run.py", "len(classes)"): "more than are shown",
    ("recipes/tokenizer/run.py", "len(vectors)"): "as many as codes, at least",
    ("recipes/tokenizer/run.py", "model.vocab_size"): "two at least",
    ("stages/start/heads.py", "len(classes)"): "two at least",
    ("tokenizers/kmeans.py", "len(vectors)"): "of all images",
    ("training/loop.py", "images_per_second"): "a unit",
    ("visualize/report.py", "len(names)"): "four at least",
}
"""Numbers before a plural that are never one, and why."""


def counts_before_plurals(code: str) -> Iterator[str]:
    """The numbers of things that f-strings write before a plural, as they stand in the code."""
    for node in ast.walk(ast.parse(code)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in pairwise(parts):
            if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                text, style = ast.unparse(value.value), ast.unparse(value.format_spec or ast.Constant(""))
                is_count = not text.isupper() and (COUNT.match(text) or "," in style)
                if is_count and PLURAL.match(str(after.value)):
                    yield text


@pytest.mark.parametrize(
    ("number", "noun", "verbs", "words"),
    [
        (1, "image", "", "1 image"),
        (2048, "image", "", "2,048 images"),
        (0, "class", "", "0 classes"),
        (2, "patch", "", "2 patches"),
        (3, "epoch", "", "3 epochs"),
        (1, "class", "has/have", "1 class has"),
        (2, "class", "has/have", "2 classes have"),
    ],
)
def test_things_are_counted_in_english(number: int, noun: str, verbs: str, words: str) -> None:
    assert counted(number, noun, verbs) == words


def test_a_number_that_may_be_one_stands_before_no_plural() -> None:
    """It is written by `counted`, which knows both."""
    said = {
        (str(path.relative_to(SRC)), count)
        for path in SRC.rglob("*.py")
        for count in counts_before_plurals(path.read_text(encoding="utf-8"))
    }
    assert sorted(said - SEVERAL.keys()) == []


def test_a_plural_is_found() -> None:
    assert [*counts_before_plurals('f"{len(x)} classes have fewer than {count:,} labelled images"')] == [
        "len(x)",
        "count",
    ]
    assert not [*counts_before_plurals('f"{width}x{height} pixels, {name} images, {EPOCH:,} images"')]
