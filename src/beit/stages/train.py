"""What every training verb does around its method: rehearse, open the run, say what will be done, train, and say what
comes next."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.checkpoints.store import save_model
from beit.config.errors import Interrupted, RunFailed, UserError
from beit.data.base import Source
from beit.data.loaders import Loader, View, evaluation_batches
from beit.data.sources.subsets import Subset, spread
from beit.presets import Choice
from beit.stages.announcement import announce, conclude, with_page
from beit.stages.auto.choices import rate_of
from beit.stages.auto.compilation import require_compiler, settle_compilation
from beit.stages.auto.memory import FEW as FEW_IMAGES
from beit.stages.auto.memory import checkpoint_activations, fit_memory, work_of_an_image
from beit.stages.auto.rehearsal import fit_into, measure
from beit.stages.batches import Machine, each_batch, open_machine, report_skipped
from beit.stages.overlap import write_images
from beit.stages.session import Config, Feed, Outcome, Session, run_request
from beit.training.console import Console, duration
from beit.training.device import to_device
from beit.training.loop import fit
from beit.training.method import EvaluationSplit, Method, Product
from beit.training.plan import Job, Pace, Plan
from beit.training.run.directory import LISTING, SKIPPED, TRAINED_ON
from beit.training.run.opening import open_run
from beit.training.signals import StopRequested, stop_signals

PICTURES = 8
"""Images in a drawing."""
REHEARSAL, LONGEST_REHEARSAL = 0.05, 5.0
"""The steps of a rehearsal take this share of the budget, and so many seconds at most."""
MEANT, LENGTHS = 30 * 86_400.0, {"steps", "epochs", "budget"}
"""Seconds from which on a run has to be meant: one of these was typed, or it has begun."""
FEW, FEWEST = 8, 10
"""Images of a pass that tell whether a step takes seconds, and the steps of the shortest run that is rehearsed."""


def train(session: Session[Any], method: Method, feed: Feed) -> Outcome:
    """Announce `method` and train it to its end, from wherever the run stands."""
    compute, console = session.compute, session.console
    machine = open_machine(session.config, compute)
    machine = machine._replace(precision=compute.from_main(lambda: machine.precision))
    settled = dataclasses.replace(session.config, precision=machine.precision)  # for this start and all others
    session = session._replace(config=settled.as_typed(session.config.typed))
    if session.config.compile == "on":
        require_compiler(compute.device)
    rehearsal = RunBatches(session, feed, machine._replace(workers=0))
    is_prepared = method.prepare is None
    if is_prepared:  # what must be prepared can only be judged after that, and timed
        rehearsal.rehearse(method)
    elif session.config.budget is not None:
        _prepare(method, rehearsal, machine)
        is_prepared = True
    session = set_steps(session, lambda _: method, feed)
    if is_prepared and not session.memory:
        session = _fit_memory(session, method, feed)
    checkpoint_activations(method.learner.model, session.config)
    if is_prepared and session.pace is None:
        session = _paced(session, method, feed)
    config, plan = session.config, feed.images.plan(session.config)
    if session.dry_run:
        announce(session, method, feed, plan, machine.precision)
        console.say("dry run: nothing was written")
        return Outcome(config, {"judged": feed.judged}, session.expected_seconds(plan))
    _require_meant(session, plan)
    facts = {"images": feed.images.fingerprint, **method.product.facts}
    if method.product.tokenizer_hash is not None:
        facts["tokenizer"] = method.product.tokenizer_hash
    request = run_request(session.verb, config, facts)._replace(budget=session.budget, began=session.began)
    with open_run(config.out, request, compute=compute, console=console, overwrite=session.overwrite) as run:
        announce(session, method, feed, plan, machine.precision)
        if compute.main and not (run.path / TRAINED_ON).exists():
            write_images(run.path, feed.images.train, feed.images.all_held_back or feed.images.held_back)
        run.bear(LISTING, lambda: feed.images.holdout.cache.save(run.path / LISTING))
        batches = RunBatches(session, feed, machine)
        if not is_prepared:
            _prepare(method, batches, machine)
        save = partial(_save, session, method.product)
        verdict = partial(batches.judgement.verdict, run.path, method)
        job = Job(with_page(method, run), batches, plan, compute, machine.precision)
        results = fit(job, run, save, session.pace, verdict)
        conclude(session, method.notes, results, run.damaged())
        if (budget := run.noted("budget")) is not None and config.extend_to is None:
            console.say(f"took {duration(run.elapsed)} of a budget of {budget}")
    return Outcome(config, results)


def _require_meant(session: Session[Any], plan: Plan) -> None:
    """UserError for a run of months that has not begun, and whose length nobody typed."""
    config, seconds = session.config, session.expected_seconds(plan) or 0.0
    if seconds > MEANT and not LENGTHS & config.typed.keys() and not session.has_begun:
        raise UserError(
            f"this run would take about {duration(seconds)} on this machine; --budget 1h makes one that fits it, and "
            f"--steps {plan.steps} says that so long a one is meant"
        )


def _prepare(method: Method, batches: "RunBatches", machine: Machine) -> None:
    """Compute what `method` needs before its first step, at each start anew: there is nothing to save of it."""
    assert method.prepare is not None
    with stop_signals(distributed=machine.compute.world > 1) as stop:
        try:
            method.prepare(batches, machine.precision, stop)
        except StopRequested:
            message = "interrupted while preparing, before any step of this start; the same command continues"
            raise Interrupted(message) from None


def _fit_memory(session: Session[Config], method: Method, feed: Feed) -> Session[Config]:
    """`session` with the memory that a pass of `method` takes, and how it fits."""
    machine = open_machine(session.config, session.compute)
    batch = RunBatches(session, feed, machine).few_to_train_on(2 * FEW_IMAGES)
    return session if batch is None else fit_memory(session, method, batch, machine.precision)


def _paced(session: Session[Any], method: Method, feed: Feed) -> Session[Any]:
    """`session` with the pace of its run, where that can be told, and with the choice of `--compile`."""
    pace, plan = estimate(session, method, feed), feed.images.plan(session.config)
    if pace is None or session.has_begun:
        return session._replace(pace=pace)

    def rehearse_as(config: Any) -> Pace:
        return rehearse(session._replace(config=config), method, feed, LONGEST_REHEARSAL / 2)

    return settle_compilation(session, pace, sum(pace.left(plan)), rehearse_as)


def estimate(session: Session[Any], method: Method, feed: Feed) -> Pace | None:
    """The pace of a run whose steps are given, by a rehearsal of seconds, however large it is; None without steps
    and on several ranks. What is wrong with the run is left to it to say."""
    config, compute = session.config, session.compute
    # Of fewer steps a rehearsal would take as long.
    if method.learner.step is None or compute.world > 1 or feed.images.plan(config).steps < FEWEST:
        return None
    try:
        if compute.device.type == "cpu" and config.batch_size > FEW * config.passes:
            few = session._replace(config=dataclasses.replace(config, batch_size=FEW, accumulate=1, compile="off"))
            pace, times = rehearse(few, method, feed, 0.0), config.batch_size / FEW
            if times * pace.step > LONGEST_REHEARSAL:
                return pace._replace(step=times * pace.step)
        return rehearse(session, method, feed, LONGEST_REHEARSAL / 2)
    except (RunFailed, RuntimeError, MemoryError):
        return None


def rehearse(session: Session[Any], method: Method, feed: Feed, seconds: float) -> Pace:
    """The pace of the session's configuration; its steps are timed for about `seconds`."""
    config, compute = session.config, session.compute
    machine = open_machine(config, compute)
    batches = RunBatches(session._replace(console=Console(main=False)), feed, machine)
    together = (method.evaluation.batch_size or batches.per_pass) * compute.world
    judged = (feed.images.held_back, feed.images.test or ())
    held_back, test = (math.ceil(len(images) / together) for images in judged)
    if method.evaluation.measure is not None:  # which shows the network about as many images again
        held_back *= 2
    job = Job(method, batches, feed.images.plan(config), compute, machine.precision)
    pace, few = measure(job, passes=(held_back, test), seconds=seconds), batches.few_to_train_on(FEW_IMAGES)
    if few is not None:
        pace = pace._replace(image=work_of_an_image(job, few) / rate_of(compute, machine.precision))
    return pace


def set_steps(session: Session[Config], make_method: Callable[[Config], Method], feed: Feed) -> Session[Config]:
    """`session` with the steps that fit in the time that is given for the run; itself where its steps are given.

    A rehearsal tells, of the method that is made of a configuration of many steps. It leaves the run's
    random numbers.
    """
    from beit.presets.auto import SAME_RATE, batch_of_few_steps, within_epochs

    config, compute = session.config, session.compute
    budget = config.budget_seconds()
    if budget is None:
        return session
    seconds = min(LONGEST_REHEARSAL, REHEARSAL * budget)

    def rehearse_as(config: Config) -> Pace:
        long = dataclasses.replace(config, steps=10**6, budget=None)  # the rehearsal may not come to its end
        return rehearse(session._replace(config=long), method, feed, seconds)

    with torch.random.fork_rng(devices=[]):
        method = make_method(dataclasses.replace(config, steps=10**6, budget=None))
        session = _fit_memory(session, method, feed)
        session = settle_compilation(session, rehearse_as(session.config), budget, rehearse_as)
    config, pace = session.config, session.pace
    assert pace is not None
    left = max(0.0, budget - (time.monotonic() - session.began))
    steps, evaluations = compute.from_main(lambda: fit_into(left, pace, config))
    batch, chosen = config.batch_size, {name for choice in session.choices for name in choice.values}
    if {"batch_size", "lr_batch_size"} <= chosen:
        batch = batch_of_few_steps(session.verb, batch, steps)
    if batch < config.batch_size and batch % (2 * compute.world * config.passes) == 0:
        values = {"batch_size": batch, **({"lr_batch_size": batch} if session.verb in SAME_RATE else {})}
        choice = Choice(values, f"{config.batch_size} would leave few steps ({steps:,})")
        smaller = dataclasses.replace(config, **values).as_typed(config.typed)
        return set_steps(session._replace(config=smaller, choices=(*session.choices, choice)), make_method, feed)
    steps, remark = within_epochs(session.verb, config, len(feed.images.train), steps)
    reason = (
        f"{duration(left)} are left of {config.budget}; a step takes {pace.step:.3g} s, an evaluation "
        f"{pace.evaluation:.2g} s, a save {pace.save:.2g} s{remark}"
    )
    values = {"steps": steps, "evaluations": evaluations}
    settled = dataclasses.replace(config, steps=steps, evaluations=evaluations, budget=None).as_typed(config.typed)
    choices = (*session.choices, Choice(values, reason))
    return session._replace(config=settled, choices=choices, budget=config.budget)


def _save(session: Session[Any], product: Product, model: nn.Module, folder: Path, step: int) -> None:
    pixels = {name: (session.config.pixels or {}).get(name) for name in ("value_range", "bits")}
    save_model(
        product.export(model),
        folder,
        provenance={"verb": session.verb, "step": step, "data": list(session.config.sources)},
        tokenizer_hash=product.tokenizer_hash,
        classes=product.classes,
        extra={**product.description, **pixels},
    )


class RunBatches:
    """A run's images in batches; see :class:`beit.training.method.Batches`."""

    def __init__(self, session: Session[Any], feed: Feed, machine: Machine) -> None:
        """UserError where ranks and passes cannot share the batch size."""
        from beit.stages.judgement import Judgement  # watches what is judged, and is no part of the training

        self._config, self._console, self._feed, self.machine = session.config, session.console, feed, machine
        config, compute = session.config, session.compute
        self.judgement = Judgement(compute, config.group_by)
        self._loader = Loader(
            feed.images.train,
            feed.view,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=compute.rank,
            world=compute.world,
            accumulate=config.passes,
            workers=machine.workers,
            max_bad=config.max_bad,
            on_bad=self._report_bad,
            labeled=feed.labeled,
            repeats=feed.repeats,
            cycle=feed.cycle,
            pin_memory=compute.device.type == "cuda",
            timeout=machine.timeout,
        )

    @property
    def per_pass(self) -> int:
        """Images of a pass on this rank."""
        passes: int = self.machine.compute.world * self._config.passes
        return int(self._config.batch_size // passes)

    def train(self, start: int, stop: int) -> Iterator[Any]:
        return self._loader.batches(start, stop)

    def evaluate(
        self, split: EvaluationSplit, apply: Callable[[Any], dict[str, Tensor]], batch_size: int | None
    ) -> Iterator[dict[str, Tensor]] | None:
        source = self._feed.images.held_back if split == "held_back" else self._feed.images.test
        if not source:
            return None
        passes = each_batch(
            apply,
            source,
            self._feed.evaluation_view,
            self.machine,
            batch_size=batch_size or self.per_pass,
            seed=self._config.seed,
            labeled=self._feed.labeled,
            on_bad=self._report_bad,
            title="evaluating",
        )
        return self.judgement.keep(source, passes)

    def samples(self, batch_size: int | None) -> list[Any]:
        # Spread over the set, because neighbours in it are alike.
        held_back = self._feed.images.held_back
        chosen = Subset(held_back, spread(len(held_back), PICTURES) if held_back else [])
        return list(self._each_once(chosen, self._feed.evaluation_view, batch_size or PICTURES))

    def rehearse(self, method: Method) -> None:
        """One image through the training view, and one through the evaluation: a mistake shows in seconds, and before
        anything is written."""
        model = method.learner.model.to(self.machine.compute.device)
        self.few_to_train_on(1)
        next(self.evaluate("held_back", partial(method.evaluation.evaluate_batch, model.eval()), 1) or iter(()), None)
        model.train()

    def few_to_train_on(self, count: int) -> Any:
        """A batch of so many training images, fewer where some are damaged; None where none can be read."""
        return next(self._each_once(self._feed.images.train, self._feed.view, count), None)

    def _each_once(self, source: Source, view: View, batch_size: int) -> Iterator[Any]:
        """The images of `source` on the device, damaged ones left out."""
        seed, labeled = self._config.seed, self._feed.labeled
        batches = evaluation_batches(source, view, batch_size=batch_size, seed=seed, labeled=labeled)
        return (to_device(batch, self.machine.compute.device) for _, batch in batches)

    def _report_bad(self, name: str, reason: str) -> None:
        line = f"{SKIPPED}{name}: {reason}"
        if self.machine.compute.main:
            self._console.say(line)
        else:  # damage that only other ranks meet is named at once, and logged with the next save
            report_skipped(name, reason)
            self._console.log(line)
