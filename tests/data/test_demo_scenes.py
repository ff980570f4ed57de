"""The built-in set: reproducible, balanced, consistent between its three answers."""

from __future__ import annotations

import hashlib

import numpy as np

from beit.data.sources.demo import CLASSES, DemoSource, render_scene


def test_scenes_are_functions_of_seed_and_index() -> None:
    first, again, other = render_scene(0, 5), render_scene(0, 5), render_scene(0, 6)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    digest = hashlib.sha256(b"".join(render_scene(0, i)[0].tobytes() for i in range(8))).hexdigest()
    assert digest == "c5e621ff05c05f541d7f67089fd081e20ed107def885215154616f0cd6c62617"


def test_label_is_the_class_of_a_visible_object() -> None:
    for index in range(50):
        image, label, label_map = render_scene(1, index, 48)
        assert image.shape == (48, 48, 3) and image.dtype == label_map.dtype == np.uint8
        assert 0 <= label < len(CLASSES) and label_map.max() <= len(CLASSES)
        assert (label_map == label + 1).any() and (label_map == 0).any()
        assert image.std() > 5


def test_a_scene_is_the_same_at_any_size() -> None:
    small, label, _ = render_scene(0, 3, 32)
    large, same, _ = render_scene(0, 3, 128)
    means = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert label == same and np.abs(means - small).mean() < 8


def test_classes_are_balanced_and_colour_tells_little_of_them() -> None:
    scenes = [render_scene(2, i, 32) for i in range(400)]
    counts = np.bincount([label for _, label, _ in scenes], minlength=len(CLASSES))
    assert counts.min() > 400 / len(CLASSES) / 2
    # Of the mean colour of the labelled object, its brightness tells a little (chance is 1/8), its hue nothing.
    colours = np.array([image[m == label + 1].mean(0) for image, label, m in scenes])
    labels = np.array([label for _, label, _ in scenes])
    centres = np.array([colours[:200][labels[:200] == c].mean(0) for c in range(len(CLASSES))])
    nearest = np.linalg.norm(colours[200:, None] - centres, axis=-1).argmin(1)
    assert (nearest == labels[200:]).mean() < 2 / 8


def test_source_splits_do_not_meet() -> None:
    train, held = DemoSource("train", size=32, count=40), DemoSource("eval", size=32, count=20)
    assert (len(train), len(held)) == (40, 20) and train.classes == CLASSES
    pictures = {train.image(i).numpy().tobytes() for i in range(40)}
    assert not pictures & {held.image(i).numpy().tobytes() for i in range(20)}
    assert train.image(0).shape == (3, 32, 32) and train.label_map(0).dtype == np.uint8
