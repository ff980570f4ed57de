"""Models that an earlier commit saved load, and give what they gave; see fixtures/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from beit import load_model
from beit.checkpoints import convert
from beit.checkpoints.own import weights_sha256
from beit.checkpoints.store import describe

FIXTURES = Path(__file__).parent / "fixtures"
OUTPUTS: dict[str, dict[str, Any]] = json.loads((FIXTURES / "outputs.json").read_text())
KEYS = {"kind", "architecture", "image_size", "pixel_mean", "pixel_std", "classes", "tokenizer"}
KEYS |= {"weights_sha256", "provenance"}
OPTIONS = {
    "tokenizer": {"tokenizer_kind"},
    "pretrained": {"vocab_size", "encoder_sees"},
    "classifier": {"num_classes", "pool", "interpolation", "crop_pct", "crop_mode", "multilabel"},
    "upernet": {"num_classes", "decoder", "layers", "channels", "transposed", "auxiliary"}
    | {"resize", "crop", "stride", "reduce_zero_label", "ignore_value", "palette"},
    "pup": {"num_classes", "decoder", "layers", "channels", "transposed", "auxiliary"},
    "probe": {"num_classes", "layer", "pool"},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_model_of_an_earlier_commit_gives_what_it_gave(name: str, tmp_path: Path) -> None:
    model: Any = load_model(FIXTURES / name)
    about = describe(FIXTURES / name)
    assert about.keys() == {"format", "parameters", *KEYS, *OPTIONS[name]}
    assert about["weights_sha256"] == weights_sha256(model)
    height, width = about["image_size"]
    values = torch.arange(3 * height * width, dtype=torch.float64)
    images = (values * 0.37).sin().view(1, 3, height, width) / 2 + 0.5
    with torch.no_grad():
        model.double()
        if name == "tokenizer":
            result = model.logits(images)
        elif name == "pretrained":
            result = model(images, torch.arange(8).view(1, 8) % 2 == 0)
        else:
            result = model(images)
    recorded = OUTPUTS[name]
    assert list(result.shape) == recorded["shape"]
    expected = torch.tensor(recorded["values"], dtype=torch.float64)
    assert expected.std() > 1e-3
    torch.testing.assert_close(result.flatten()[:: recorded["every"]], expected, rtol=0, atol=1e-9)
    # Saved again, model.json says the same but for where it comes from.
    convert(FIXTURES / name, tmp_path / "copy", "beit")
    copy = describe(tmp_path / "copy")
    del about["provenance"], copy["provenance"]
    assert copy == about
