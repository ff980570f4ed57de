"""`beit tokenizer`: make a visual tokenizer (paper section 2.1)."""

import dataclasses

from beit.config.tokenizer import TokenizerConfig
from beit.data.views.evaluation import EvaluationView
from beit.data.views.tokenizer import TokenizerViews
from beit.recipes.tokenizer.methods import codebook_method, reconstruction_method
from beit.stages.auto.choices import settle
from beit.stages.session import Feed, Outcome, finished, open_images, open_session
from beit.stages.train import set_steps, train
from beit.training.method import Method


def tokenizer(config: TokenizerConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Make a tokenizer from the images of `config.data`; the run directory is `config.out`."""
    opened = open_session("tokenizer", config, dry_run=dry_run, overwrite=overwrite)
    if opened is None:
        return finished(config)
    images = open_images(opened.config)
    session, config = settle(opened, images)
    size = (config.image_size, config.image_size)
    views = TokenizerViews(size, crop=config.crop, min_scale=config.min_crop)
    feed = Feed(images=images._replace(test=None), view=views, evaluation_view=EvaluationView(size))

    def method(config: TokenizerConfig) -> Method:  # whose schedules hang on the steps
        make = reconstruction_method if config.is_trained else codebook_method
        return make(config, session, images)

    if config.is_trained:
        session = set_steps(session, method, feed)
    else:  # a codebook takes the time that it takes
        at_once = dataclasses.replace(config, steps=1, epochs=None, budget=None).as_typed(config.typed)
        session = session._replace(config=at_once)
    return train(session, method(session.config), feed)
