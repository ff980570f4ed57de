"""What the images of a run are labelled by: the folders they lie in, or a file."""

from __future__ import annotations

from beit.data.label_file import LabelFile, Labels
from beit.stages.stage import Stage


def label_images(stage: Stage, path: str | None, *, multilabel: bool = False) -> Labels:
    """What the labels of the stage's images mean, which come from the file at `path`; None: from where they lie."""
    if path is None:
        assert stage.source.classes is not None  # open_source refuses data without labels
        return Labels(stage.source.classes)
    file = LabelFile(path, multilabel=multilabel)
    stage.source, stage.held_back = file.apply(stage.source), file.apply(stage.held_back, held_back=True)
    stage.source.notes += file.unused()
    return file.labels
