"""How a tokenizer of any kind is judged, drawn, and spoken of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from beit.config.tokenizer import TokenizerConfig
from beit.data.batches import ImageBatch
from beit.stages.batches import open_machine
from beit.stages.scores.tokens import Scoring
from beit.stages.session import Images, Session
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.objective import reconstruction_figures, reconstruction_sums
from beit.training.device import Precision
from beit.training.method import Evaluation, Notes
from beit.training.signals import StopSignals
from beit.visualize.pictures import contact_sheet, save_picture, token_picture

LARGEST_PASS = 256
"""Images whose tokens are sought at once, at most."""


def evaluation(config: TokenizerConfig, session: Session[Any], images: Images) -> Evaluation:
    """What a tokenizer keeps of images, and what its tokens say."""

    batch_size = max(1, min(LARGEST_PASS, config.batch_size // session.compute.world))
    scoring = Scoring(config, images.train, images.held_back, batch_size)

    def measure(model: nn.Module, precision: Precision, stop: StopSignals) -> dict[str, float]:
        machine = open_machine(config, session.compute, precision)
        return scoring.scores(cast(VisualTokenizer, model), machine, stop)

    return Evaluation(
        evaluate_batch=lambda model, batch: reconstruction_sums(cast(VisualTokenizer, model), batch.image),
        summarise=reconstruction_figures,
        monitor="reconstruction_mae",
        keep_best=config.is_trained,  # what is computed at once is judged once
        draw=draw,
        measure=measure,
    )


def notes(config: TokenizerConfig, model: VisualTokenizer, *further: str) -> Notes:
    """What is said of a run that makes `model`."""
    stride, size = model.stride, config.image_size
    about = (
        f"{model.vocab_size} codes, one for each {stride}x{stride} pixels: "
        f"{size} px become {size // stride}x{size // stride} tokens"
    )
    told = f"--data {' '.join(config.sources)} --tokenizer {config.out} --out {Path(config.out).parent / 'pretrain'}"
    return Notes(about=[about, *further], next_command=f"beit pretrain {told}")


def draw(model: nn.Module, batches: Sequence[ImageBatch], folder: Path, step: int) -> None:
    """Images, their tokens as colours, and what the tokens decode to."""
    [batch] = batches
    assert isinstance(model, VisualTokenizer)
    tokens = model.encode(batch.image)
    cell = batch.image.shape[-1] // tokens.shape[-1]
    columns: dict[str, Sequence[Tensor] | Tensor] = {
        "image": batch.image,
        "visual tokens": [token_picture(grid, model.vocab_size, cell) for grid in tokens],
        "decoded tokens": model.decode(tokens).float(),
    }
    save_picture(contact_sheet(columns), folder, step, "reconstructions")
