"""`beit suggest`: which images to label next, as a table to fill in and a page to look at."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from beit.atomic import replace_file
from beit.checkpoints.reference import part_of
from beit.checkpoints.store import describe
from beit.config.errors import require
from beit.config.use import Outcome, PredictConfig, SuggestConfig
from beit.config.values import counted
from beit.data.decode import Decoding
from beit.data.label_file import read_label_rows
from beit.data.sources.opening import open_images
from beit.recipes.predict.run import predictions
from beit.stages.inference import require_writable_file
from beit.stages.session import decoding_of
from beit.tokenizers.kmeans import kmeans
from beit.visualize.page import Section, write_page
from beit.visualize.pictures import to_pil


class Suggestion(NamedTuple):
    """An image to label."""

    image: str
    reason: str


def suggest(config: SuggestConfig) -> Outcome:
    """Choose among `config.images`, write the table and the page, and return the `suggestions`, the best first."""
    require_writable_file(config.out)
    labeled = set(read_label_rows(Path(config.labels))) if config.labels else set[str]()
    shared: dict[str, Any] = {name: getattr(config, name) for name in ("images", "device", "precision", "workers")}
    features = PredictConfig(model=part_of(config.model, "init"), features=True, **shared)
    records = [record for record in predictions(features) if not _endings(record["image"]) & labeled]
    require(bool(records), "every image has a label already; name others")
    names = [record["image"] for record in records]
    chosen: dict[str, str] = {}
    if describe(config.model)["kind"] == "classifier":
        sure, labels = dict[str, float](), predictions(PredictConfig(model=config.model, **shared))
        for record in labels:
            first, second, *_ = [*(entry["probability"] for entry in record["top"]), 0.0]
            sure[record["image"]] = first - second
        for name in sorted(names, key=sure.__getitem__)[: config.number // 2]:
            chosen[name] = f"unsure: the two likeliest classes are {sure[name]:.1%} apart"
    rest = torch.from_numpy(np.stack([record["mean"] for record in records]))
    for index, size in representatives(rest, config.number, torch.Generator().manual_seed(config.seed)):
        if len(chosen) < config.number:
            chosen.setdefault(names[index], f"stands for {counted(size, 'image')} like it")
    suggestions = [Suggestion(*entry) for entry in chosen.items()]
    _write(suggestions, config, decoding_of(features))
    page = Path(config.out).with_suffix(".html")
    print(f"{len(suggestions):,} of {counted(len(names), 'image')} to label: fill in {config.out}, and see {page}")
    return Outcome(config, {"suggestions": suggestions})


def representatives(features: Tensor, count: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """The images nearest to the centres of `count` clusters of features (N, D), and how many each stands for, the
    largest clusters first. Directions count: features are centred and brought to one length."""
    vectors = F.normalize(features - features.mean(dim=0), dim=1)
    centers, cluster = kmeans(vectors, min(count, len(vectors)), rng)
    nearest = (vectors @ centers.T).argmax(dim=0)
    sizes = cluster.bincount(minlength=len(centers))
    order = sizes.argsort(descending=True, stable=True).tolist()
    return [(int(nearest[center]), int(sizes[center])) for center in order]


def _endings(name: str) -> set[str]:
    """What a file of labels may call an image: its path, from any folder on."""
    folders = name.split("/")
    return {"/".join(folders[start:]) for start in range(len(folders))}


def _write(suggestions: Sequence[Suggestion], config: SuggestConfig, decoding: Decoding) -> None:
    """The table with an empty column for classes, and the page."""
    csv.writer(table := io.StringIO()).writerows([("image", "class"), *((name, "") for name, _ in suggestions)])
    content = table.getvalue().encode(errors="surrogateescape")
    replace_file(Path(config.out), lambda draft: draft.write_bytes(content))
    source = open_images(config.images, decoding)
    places = {source.path(index): index for index in range(len(source))}
    page, path = Section("", rows=[suggestions]), Path(config.out).with_suffix(".html")
    write_page(path, "To label", [page], lambda name: to_pil(source.image(places[name])))
