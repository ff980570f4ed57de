"""What is said of figures: for few classes and dead ones, few images, collapse, divergence; and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from beit.figures import headlines
from beit.metrics.intervals import wilson
from beit.training.run.record import Curve, RunRecord
from beit.verdicts.rules import Verdict, few_images, verdicts


def judge(results: dict[str, Any] | None = None, /, **curves: list[float]) -> list[Verdict]:
    """The verdicts on a run with these values at equal steps; `eval_` stands for `eval/`."""
    named = {name.replace("eval_", "eval/"): np.array(values, float) for name, values in curves.items()}
    read = {name: Curve(np.arange(len(values), dtype=float), values) for name, values in named.items()}
    return verdicts(RunRecord(curves=read, results=results or {}))


def said(results: dict[str, Any] | None = None, /, **curves: list[float]) -> str:
    return " ".join(verdict.text for verdict in judge(results, **curves))


def score(share: float, images: int, name: str = "top1", **rivals: float) -> list[Verdict]:
    """The verdicts on a finished run whose score is such a share of its held-back images."""
    low, high = wilson(round(share * images), images)
    interval = {"low": low, "high": high, "images": images, "units": images}
    beside = {f"eval_{rival}_{name}": [value] for rival, value in rivals.items()}
    return judge({"interval": interval}, **{f"eval_{name}": [share]}, **beside)


@pytest.mark.parametrize(("last", "tone", "words"), [(3.1, "good", "fell by 0.4"), (3.6, "open", "rose by 0.1")])
def test_a_run_that_went_on_says_whether_it_got_better(last: float, tone: str, words: str) -> None:
    curves = {"eval/loss": Curve(np.arange(3.0), np.array([3.5, 3.3, last]))}
    runs = [RunRecord(curves=curves, config={"init": init}) for init in ("x", None)]
    [verdict], nothing = ([one for one in verdicts(run) if "--init" in one.text] for run in runs)
    assert verdict.tone == tone and f"{words}, from 3.5 to {last:.3g}." in verdict.text
    assert bool(verdict.mend) == (tone == "open") and not nothing


def test_a_new_head_s_first_loss_is_no_yardstick() -> None:
    """It falls whatever becomes of the features; k-NN tells what the run did to them."""
    loss, knn = Curve(np.arange(3.0), np.array([5.8, 4.0, 3.1])), Curve(np.arange(3.0), np.array([0.58, 0.4, 0.3]))
    chance = Curve(np.arange(3.0), np.full(3, 0.2))
    curves = {"eval/loss": loss, "eval/knn_top1": knn, "eval/knn_chance": chance}
    results = {"vocab_size": 256, "interval": {"low": 0.2, "high": 0.4, "images": 161, "units": 161}}
    head, features = verdicts(RunRecord(curves=curves, config={"init": "x"}, results=results))
    assert head.tone == "plain" and "its head was new" in head.text
    assert features.text.startswith("Going on made the features worse") and "a lower --lr" in features.mend


def test_two_classes_can_be_told_apart_well() -> None:
    [verdict] = score(0.99, 200, commonest=0.5, histogram=0.72, pixels=0.6)
    assert verdict.tone == "good" and not verdict.mend
    assert "99.0 % of 200 held-back images are named right (95 % interval 96.4 to 99.7 %)" in verdict.text.replace(
        " % to", " to"
    )
    assert "naming always the commonest class 50.0 %; a linear classifier of colour histograms 72.0 %" in verdict.text


def test_a_result_within_chance_says_the_mend() -> None:
    """Ants and bees: 63.3 % of 30 photographs, which half right would give one time in ten."""
    [verdict] = score(19 / 30, 30, commonest=0.5, histogram=0.7, pixels=0.57)
    assert verdict.tone == "bad" and verdict.text.startswith("Not shown to be better than naming always")
    assert "few images tell little" in verdict.text
    assert "label more images" in verdict.mend and "--holdout" in verdict.mend


def test_what_is_worse_than_its_yardstick_is_called_so_and_a_start_is_advised_where_there_was_none() -> None:
    [verdict] = score(0.4, 400, commonest=0.2, histogram=0.6)
    assert verdict.tone == "bad" and verdict.text.startswith("Worse than a linear classifier of colour histograms")
    assert "(--init)" in verdict.mend
    curves = {
        name: Curve(np.zeros(1), np.full(1, value)) for name, value in (("eval/top1", 0.4), ("eval/pixels_top1", 1))
    }
    results = {"interval": {"low": 0.3, "high": 0.5, "images": 400, "units": 400}}
    [verdict] = verdicts(RunRecord(curves=curves, results=results, config={"init": "runs/pretrain"}))
    assert verdict.text.startswith("Worse than the nearest training images") and "(--init)" not in verdict.mend


def test_what_a_histogram_does_as_well_is_not_good() -> None:
    [verdict] = score(0.72, 400, commonest=0.5, histogram=0.7)
    assert verdict.tone == "open" and verdict.mend
    assert verdict.text.startswith("Not shown to be better than a linear classifier of colour histograms")
    [verdict] = score(0.72, 400, commonest=0.5, histogram=0.6)
    assert (verdict.tone, verdict.mend) == ("good", "")


def test_few_images_are_never_good_and_say_what_they_stand_for() -> None:
    [verdict] = score(1.0, 20, commonest=0.5)
    assert verdict.tone == "open" and "few images tell little" in verdict.text
    [verdict] = score(0.6, 20, commonest=0.5)
    assert "--holdout 0.5" in verdict.mend
    curves = {
        "eval/top1": Curve(np.zeros(1), np.array([0.6])),
        "eval/commonest_top1": Curve(np.zeros(1), np.array([0.5])),
    }
    interval = {"low": 0.4, "high": 0.8, "images": 20, "units": 20}
    run = RunRecord(curves=curves, results={"interval": interval}, config={"holdout": 0.5})
    assert [verdict.mend.split(" (")[0] for verdict in verdicts(run)] == ["label more images"]
    assert "--holdout" not in verdicts(run)[0].mend, "it is given already"
    assert (
        "13 of 20 right would stand for 43.3 % to 81.9 %" in few_images(20) and few_images(0) == few_images(50) == ""
    )


@pytest.mark.parametrize(("dead", "tones"), [(0, ["good"]), (2, ["open", "open"]), (9, ["open", "bad"])])
def test_classes_that_are_never_found_are_named(dead: int, tones: list[str]) -> None:
    """CamVid: 14 % mIoU with 9 of 12 classes at zero beats any rule of thumb, and is no success."""
    classes = {f"class {i}": {"iou": 0.0 if i < dead else 0.5, "share": 1 / 12} for i in range(12)}
    classes["nowhere"] = {"iou": 0.0, "share": 0.0}
    interval = {"low": 0.13, "high": 0.15, "images": 101, "units": 101}
    found = judge({"classes": classes, "interval": interval}, eval_miou=[0.14], eval_place_miou=[0.08])
    assert [verdict.tone for verdict in found] == tones
    if dead:
        assert f"{dead} of 12 classes are never found: class 0" in found[1].text
        assert bool(found[1].mend) == (dead == 9)


def test_groups_are_said() -> None:
    interval = {"low": 0.4, "high": 0.8, "images": 300, "units": 12}
    assert "over 12 groups" in said({"interval": interval}, eval_top1=[0.6], eval_commonest_top1=[0.3])


def test_learned_by_heart_is_a_rise_beyond_the_noise_of_so_few_images() -> None:
    few = {"interval": {"low": 0.5, "high": 0.8, "images": 30, "units": 30}}
    many = {"interval": {"low": 0.5, "high": 0.8, "images": 2000, "units": 2000}}
    rising = {"eval_loss": [0.9, 0.631, 0.652], "eval_top1": [0.5, 0.66, 0.66]}
    assert "by heart" not in said(few, **rising) and "by heart" in said(many, **rising)
    # A loss that rises while more images are named right is overconfident, and the classifier is better.
    assert "by heart" not in said(many, eval_loss=[0.9, 0.63, 0.8], eval_top1=[0.5, 0.66, 0.7])
    assert "by heart" in said(eval_loss=[5, 4, 4.5]) and "by heart" not in said(eval_loss=[5, 4, 4.01])


def test_divergence_and_collapse_say_what_to_mend() -> None:
    [diverged] = judge(loss=[2.3, 1.9, 2.9])
    assert diverged.tone == "bad" and "was 2.3 at the beginning" in diverged.text
    assert "--overwrite and a third of the --lr" in diverged.mend
    assert judge(loss=[2.3, 1.9, 2.4]) == [] == judge(loss=[2.0, 9.0], nll=[2.0, 1.0])
    assert judge(loss=[-0.005, 0.003]) == []
    [codes] = judge({"vocab_size": 512}, perplexity=[90, 3.2], codes_used=[90, 9])
    assert codes.tone == "bad" and "9 codes occur, 3.2 in effective use" in codes.text and codes.mend
    [codes] = judge({"vocab_size": 16}, perplexity=[3.2], codes_used=[9])
    assert codes.tone == "plain"
    [rank] = judge(eval_effective_rank=[1.3], eval_effective_rank_ceiling=[191])
    assert rank.tone == "bad" and "1.3 of at most 191 dimensions" in rank.text and rank.mend


def test_masked_tokens_are_judged_beside_the_best_baseline() -> None:
    baselines = {"eval_unigram_loss": [6, 6], "eval_copy_neighbour_loss": [5, 5]}
    [context] = judge(eval_loss=[5, 4.0], **baselines)
    assert context.text.startswith("The model uses context: 20 % below the best baseline") and not context.mend
    assert "against 5.00 for the best baseline (copy neighbour)" in context.text
    [context] = judge(eval_loss=[5, 4.99], **baselines)
    assert context.text.startswith("Level with the best baseline") and context.mend
    # A low training loss is no evidence when held-back images say otherwise.
    # The baselines of a tokenizer's codes are no baselines of its loss.
    assert judge(loss=[1, 0.9], eval_unigram_loss=[0.5], eval_reconstruction_mae=[0.1]) == []
    assert "Not yet using context: 4.0 % above" in said(eval_loss=[5.0, 5.2], loss=[5, 1.0], **baselines)


def test_pre_training_helped_where_k_nn_gained_more_than_chance_gives() -> None:
    def verdict(images: int) -> Verdict:
        interval = {"low": 0.3, "high": 0.5, "images": images, "units": images}
        [verdict] = judge({"interval": interval}, eval_knn_top1=[0.241, 0.3, 0.41], eval_knn_chance=[0.1] * 3)
        return verdict

    assert verdict(500).tone == "good"
    assert verdict(500).text.startswith(
        "Pre-training made the features better: neighbours name 41.0 % of 500 held-back images right, 24.1"
    )
    assert verdict(40).text.startswith("Pre-training made the features not clearly better") and verdict(40).mend


def test_reconstructions_are_judged_beside_the_mean_of_a_cell() -> None:
    assert "Tokens carry shape: reconstructions are 25 % closer" in said(
        reconstruction_mae=[0.2, 0.06], cell_mean_mae=[0.08, 0.08]
    )
    assert "not yet as close" in said(reconstruction_mae=[0.2, 0.1], cell_mean_mae=[0.08, 0.08])


@pytest.mark.parametrize("interval", [7, [1], {"low": "<b>", "high": 1, "images": 2, "units": 2}, {"low": 0.1}])
def test_a_results_file_that_makes_no_sense_is_not_believed(interval: object) -> None:
    [verdict] = judge({"interval": interval, "classes": 7}, eval_top1=[0.6], eval_commonest_top1=[0.3])
    assert verdict.tone == "plain"


def test_what_matters_most_is_of_images_that_were_not_trained_on() -> None:
    """Whichever was logged first; a page showed the accuracy on training images above the interval of others."""
    for names in (("top1", "eval/top1"), ("eval/top1", "top1")):
        assert headlines(dict.fromkeys(names, 0.5)) == {"eval/top1": 0.5}
    assert headlines({"test/top1": 0.5, "eval/top1": 0.6, "top1": 0.7}) == {"test/top1": 0.5}


def test_one_of_a_kind_is_said_in_the_singular() -> None:
    [verdict] = score(1.0, 1, commonest=0.5)
    assert "100.0 % of 1 held-back image is named right (95 % interval" in verdict.text
    assert "1 of 1 right would stand for" in few_images(1)
    classes = {name: {"iou": overlap, "share": 0.3} for name, overlap in (("a", 0.0), ("b", 0.5), ("c", 0.6))}
    assert "1 of 3 classes is never found: a." in said({"classes": classes}, eval_miou=[0.4])
    assert "The codebook has collapsed: 1 code occurs, 1.0 in" in said(eval_perplexity=[1.0], eval_codes_used=[1.0])
