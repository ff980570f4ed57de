from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import fake_run

from beit.config.errors import UserError
from beit.config.use import ReportConfig
from beit.recipes.report import report
from beit.training.run.record import Curve, RunRecord, read_run
from beit.visualize.report import write_report
from beit.visualize.tables import key_figure

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails on tags that are not closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def assert_self_contained(page: Page) -> None:
    assert page.source.startswith("<!doctype html>")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.source
    assert page.addresses and all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert {"script", "link", "iframe", "object", "form"}.isdisjoint(page.tags)
    assert "url(" not in page.source and "@import" not in page.source


@pytest.mark.parametrize("verb", ["tokenizer", "pretrain", "finetune"])
def test_a_finished_run_tells_its_story(tmp_path: Path, verb: str) -> None:
    run = fake_run(tmp_path / verb, verb)
    out = write_report([read_run(run)])
    assert out == run / "report.html"
    page = Page(out)
    assert_self_contained(page)
    said = {
        "tokenizer": "Tokens carry shape",
        "pretrain": "The model uses context: 18 % below the best baseline",
        "finetune": "Better than what needs no network, by more than chance",
    }[verb]
    for words in (
        said,
        "5,526,144 parameters",
        "5 min 12 s",
        "1,000 of 1,000",
        "torch 2.15.0",
        "Fast CPU",
    ):
        assert words in page.text
    assert "\x1b" not in page.source and "desk" not in page.text
    assert "<script" not in page.source and not list(run.glob(".tmp-*"))


def test_the_first_screen_says_what_it_came_to_and_the_classes_how(tmp_path: Path) -> None:
    page = Page(write_report([read_run(fake_run(tmp_path / "run", "finetune"))]))
    first, _, rest = page.text.partition("What training makes smaller")
    assert re.search(r"8\d\.\d\s% Top-1 accuracy 95 % interval 80\.0\s% to 90\.0\s%, on 200 images", first)
    assert "next beit predict --model classifier IMAGE..." in first and "Fast CPU" in first
    assert [a for a in page.addresses if a[0] == "#"] == [
        "#figures-1",
        "#classes-1",
        "#pictures-1",
        "#curves-1",
        "#runs",
    ]
    assert all(f'id="{address[1:]}"' in page.source for address in page.addresses if address[0] == "#")
    assert re.search(r"Class Images Named right a 150 90\.0\s% b 50 80\.0\s%", rest)
    assert re.search(r"true . named a b a 135 15 b 10 40 10\.0\s% of a is taken for b 20\.0\s% of b", rest)


def test_runs_side_by_side_and_notes(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "first", "pretrain")
    second = fake_run(tmp_path / "other" / "first", "pretrain", done=0.6, shift=0.9, seed=3, pictures=False)
    third = fake_run(tmp_path / "tokenizer", "tokenizer")
    out = write_report(
        [read_run(run) for run in (third, first, second)],
        tmp_path / "new" / "page.html",
        title="Three & more",
        notes=["Blobs <at first>."],
    )
    page = Page(out)
    assert_self_contained(page)
    assert "Three & more" in page.text and "Blobs <at first>." in page.text
    assert "other/first" in page.text and "Not yet using context" in page.text
    assert page.text.index("Tokenizer") < page.text.index("Pretrain")
    assert "Still running at step 600 of 1,000 (60 %)" in page.text


def test_figures_on_test_images_are_called_so(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "finetune", pictures=False)
    figures = {"test/top1": 0.8125, "test/loss": 0.4321}
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 1000, **figures}) + "\n")
    results = json.loads((run / "results.json").read_text())
    results["last"] |= figures
    (run / "results.json").write_text(json.dumps(results))
    text = Page(write_report([read_run(run)])).text
    assert "81.2 % of 200 test images are named right" in text
    assert re.search(r"likely class is the right one\. 81\.2 % test held-back 8\d\.\d % training", text)
    assert re.search(r"makes smaller\. 0\.4321 test held-back", text)
    assert "test/" not in text


def test_settings_that_differ_are_shown(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / str(seed), "finetune", seed=seed, pictures=False) for seed in (4, 7)]
    text = Page(report(ReportConfig(runs=tuple(map(str, runs)))).results["page"]).text
    different = text[text.index("What was set differently") :]
    assert re.search(r"seed 4 7", different) and "batch_size 64 64" not in different


def test_nothing_from_a_run_becomes_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    name = bad.replace("/", "\\")
    run = fake_run(tmp_path / f"{name} $x^", "finetune")
    for path, key in (("status.json", "command"), ("status.json", "reason"), ("model/model.json", "classes")):
        record = json.loads((run / path).read_text())
        record[key] = [bad] if key == "classes" else f"--data {bad}"
        (run / path).write_text(json.dumps(record | {"state": "failed"}))
    (run / "config.yaml").write_text(yaml.safe_dump({"data": bad, bad: "'\"></pre>" + bad}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1000, f"eval/{bad}": 0.5, bad: 1.0}) + "\n")
    (run / "log.txt").write_text(f"</pre>{bad}\n")
    (run / "results.json").write_text(json.dumps({bad: 3.0, "last": {f"class {bad}": 1.0}}))
    next((run / "samples").iterdir()).rename(run / "samples" / f'step-001000-"><img onerror=x>{name}.png')
    page = Page(write_report([read_run(run)], title=bad, notes=[bad]))
    assert_self_contained(page)
    assert page.text.count("alert(1)") >= 8
    assert "<script" not in page.source.lower()


def test_a_run_that_has_just_begun_or_been_damaged(tmp_path: Path) -> None:
    run = tmp_path / "young"
    run.mkdir()
    (run / "config.yaml").write_text("data: !!python/object:os.system x\n")
    text = Page(write_report([read_run(run)])).text
    assert "No figures have been logged yet." in text and "config.yaml could not be read" in text
    bomb = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
    (run / "config.yaml").write_text(bomb)
    hostile = [
        f'{{"step": 1, "loss": {400 * "9"}}}',
        f'{{"step": {400 * "9"}}}',
        9000 * "[",
        '{"step": 2, "loss": 3}',
    ]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in hostile))
    record = read_run(run)
    assert record.config == {} and list(record.curves["loss"].values) == [3]
    assert record.problems == ["2 lines of metrics.jsonl could not be read", "config.yaml could not be read"]

    run = fake_run(tmp_path / "damaged", "pretrain")
    (run / "status.json").write_text('{"state": "run')
    (run / "results.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('broken\n{"step": 1010, "lo')
    pictures = sorted((run / "samples").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes()[:200])
    pictures[1].write_bytes(b"<svg onload=alert(1)>")
    page = Page(write_report([read_run(run)]))
    assert_self_contained(page)
    assert "status.json could not be read" in page.text and "1 line of metrics.jsonl" in page.text
    assert page.text.count("could not be read; what could be read is shown") == 4


@pytest.mark.parametrize(
    ("classes", "palette"),
    [(7, [[1, 2, 3]]), (["sky"], [["red", 0, 0]]), (["sky"], [[1, 2]]), (["sky"], 5), ({"sky": 0}, None)],
)
def test_a_model_json_that_makes_no_sense_does_not_end_the_report(
    classes: object, palette: object, tmp_path: Path
) -> None:
    run = fake_run(tmp_path / "run", "finetune")
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "model.json").write_text(json.dumps({"classes": classes, "palette": palette}))
    assert "are named right" in Page(write_report([read_run(run)])).text


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        report(ReportConfig(runs=(str(tmp_path / "nowhere"),)))
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos.*name the --out"):
        report(ReportConfig(runs=(str(tmp_path / "photos"),)))
    with pytest.raises(UserError, match="at least one"):
        report(ReportConfig(runs=()))
    assert not list(tmp_path.rglob("*.html"))


def test_the_report_starts_without_torch() -> None:
    code = "import sys, beit.recipes.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_first_figure_stands_beside_the_hardest_reference_of_the_same_images() -> None:
    values = {"eval/loss": 4.1, "eval/unigram_loss": 5.2, "eval/copy_neighbour_loss": 4.9, "unigram_loss": 4.0}
    curves = {name: Curve(np.zeros(1), np.full(1, value)) for name, value in values.items()}
    figure = key_figure(RunRecord(curves=curves))
    assert figure is not None and figure[1:] == ("4.100", "Baseline: copying the nearest patch 4.900")
