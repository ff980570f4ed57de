"""`beit demo`: the whole story on built-in images, from pixels to predicted tokens, in minutes on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

from beit.config import DemoConfig, PretrainConfig, TokenizerConfig, require
from beit.presets import configure, find
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer import tokenizer
from beit.training.console import duration
from beit.visualize.report import write_report

NOTES = (
    "This page was made by two short trainings on scenes that the package draws itself. First a discrete VAE "
    "learned a vocabulary of visual tokens; then an encoder learned to predict the tokens of hidden patches from "
    "the patches around them.",
    "At this budget reconstructions are coloured blobs: a minute of training teaches each token a colour and "
    "little of texture and edges, and the encoder learns which colours go on behind a hidden patch. That is "
    "expected. With an hour on the same machine, or a GPU, tokens carry edges and textures, and the masked-token "
    "loss goes on falling below its baselines; docs/results.md in the repository has such runs.",
)


def demo(config: DemoConfig) -> None:
    """Train a tokenizer and an encoder on built-in scenes, and write a report. Continues where it was stopped."""
    started, out = time.monotonic(), Path(config.out)
    require(not (out / "config.yaml").exists(), f"--out {out} is a run; choose another folder for the demo")
    runs = {verb: out / verb for verb in ("tokenizer", "pretrain")}
    print("1 of 3: a visual tokenizer, which turns images into a grid of tokens\n", flush=True)
    tokenizer(
        configure(
            TokenizerConfig,
            "demo",
            data="demo",
            out=str(runs["tokenizer"]),
            seed=config.seed,
            steps=scaled_steps(TokenizerConfig, config.scale),
        ),
        overwrite=config.overwrite,
    )
    print("\n2 of 3: an encoder, which predicts the tokens of hidden patches\n", flush=True)
    pretrain(
        configure(
            PretrainConfig,
            "demo",
            data="demo",
            out=str(runs["pretrain"]),
            tokenizer=str(runs["tokenizer"]),
            seed=config.seed,
            steps=scaled_steps(PretrainConfig, config.scale),
        ),
        overwrite=config.overwrite,
    )
    print("\n3 of 3: the report\n", flush=True)
    page = write_report(list(runs.values()), out / "report.html", title="beit demo", notes=NOTES)
    print(f"done in {duration(time.monotonic() - started)}; open {page} in a browser")
    print("next: beit check --data FOLDER   (your own photographs)")


def scaled_steps(config_type: type[TokenizerConfig] | type[PretrainConfig], scale: float) -> int:
    """The demo preset's steps times `scale`."""
    steps: int = find(config_type, "demo").values["steps"]
    return max(1, round(steps * scale))
