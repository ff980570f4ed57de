"""A tokenizer and an encoder from a folder of photographs: ``python pretrain_on_a_folder.py PHOTOGRAPHS OUT``.

What ``beit tokenizer`` and ``beit pretrain`` do, from Python. Started again, both go on where they stopped.
"""

from __future__ import annotations

import argparse

import beit


def pretrain_on(photographs: str, out: str, steps: int | None = None) -> None:
    """Leave two runs, `out`/tokenizer and `out`/pretrain, and `out`/report.html; `steps` shortens both."""
    shorter = {} if steps is None else {"steps": steps, "epochs": None}
    tokenizer = beit.configure(beit.TokenizerConfig, "tiny", data=photographs, out=f"{out}/tokenizer", **shorter)
    encoder = beit.configure(
        beit.PretrainConfig,
        "tiny",
        data=photographs,
        out=f"{out}/pretrain",
        tokenizer=tokenizer.out,
        # The tokenizer makes 8x8 tokens of 32 px, so the encoder gets 8x8 patches.
        image_size=32,
        patch_size=4,
        depth=6,
        **shorter,
    )
    beit.tokenizer(tokenizer)
    beit.pretrain(encoder)
    beit.report(beit.ReportConfig(runs=(tokenizer.out, encoder.out), out=f"{out}/report.html"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", help="folder of images, flat or nested")
    parser.add_argument("out", help="folder for the two runs")
    parser.add_argument("--steps", type=int, help="of each training; by default those of the presets")
    arguments = parser.parse_args()
    pretrain_on(arguments.photographs, arguments.out, arguments.steps)
