"""`beit tokenizer`: make a visual tokenizer (paper section 2.1)."""

from __future__ import annotations

from beit.config.tokenizer import TokenizerConfig
from beit.data.views.evaluation import EvaluationView
from beit.data.views.tokenizer import TokenizerViews
from beit.recipes.tokenizer.codebook import codebook_method
from beit.recipes.tokenizer.trained import reconstruction_method
from beit.stages.session import Feed, open_images, open_session
from beit.stages.train import train


def tokenizer(config: TokenizerConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Make a tokenizer from the images of `config.data`; the run directory is `config.out`."""
    session = open_session("tokenizer", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return
    images = open_images(config)
    size = (config.image_size, config.image_size)
    views = TokenizerViews(size, crop=config.crop, min_scale=config.min_crop)
    feed = Feed(images=images._replace(test=None), view=views, evaluation_view=EvaluationView(size))
    method_of = reconstruction_method if config.is_trained else codebook_method
    train(session, method_of(config, session, images), feed)
