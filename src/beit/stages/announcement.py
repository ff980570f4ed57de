"""What a training verb says before it begins and after it has ended."""

import dataclasses
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from beit.config.run import TrainingConfig
from beit.config.values import counted
from beit.stages.overlap import notes_on_start
from beit.stages.session import Feed, Session
from beit.training.console import duration
from beit.training.device import Precision, describe_machine
from beit.training.method import Method, Notes
from beit.training.metrics import brief_line
from beit.training.plan import Plan
from beit.training.run.directory import MODEL, MODEL_BEST, REPORT, RunDirectory

SHORT, PAGE_EVERY = 20.0, 120.0
"""Seconds that a run takes without leaving a page, and between two pages of a longer one."""
part_of_journey: ContextVar[bool] = ContextVar("part_of_journey", default=False)
"""Whether another command goes on by itself where this one ends, and says what to do next."""


def announce(session: Session[Any], method: Method, feed: Feed, plan: Plan, precision: Precision) -> None:
    """What will be done, with what, where, and how large it is."""
    config, images, training = session.config, feed.images.train, list[str]()
    machine, seconds = describe_machine(session.compute), session.expected_seconds(plan)
    device = machine.get("gpu") or f"{machine['cpu']} with {counted(machine['threads'], 'thread')}"
    sizes = [(x.numel(), x.requires_grad) for x in method.learner.model.parameters()]
    parameters, learning = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    frozen = "" if learning == parameters else f", of which {learning:,} learn"
    memory = f", about {session.memory / 2**30:.2g} GiB besides torch itself" if session.memory else ""
    last, choices = {name: why for values, why in session.choices for name in values}, list[str]()
    for values, why in session.choices:
        if said := [f"{name} {value}" for name, value in values.items() if last[name] == why]:
            choices.append(f"{', '.join(said)}: {why}")
    if method.learner.step is not None:
        epochs = plan.steps * config.batch_size / plan.images
        warmup, stated = plan.warmup_steps, config.warmup_steps or 0
        shortened = f", not the {stated:,} that the run would end in" if stated > warmup else ""
        training = [
            f"{counted(plan.steps, 'step')} of {counted(config.batch_size, 'image')} ({epochs:.1f} epochs)",
            f"rate {plan.peak:.3g} at this batch size ({config.lr:.3g} at {config.lr_batch_size}, "
            f"{config.lr_scaling} scaling) after {counted(warmup, 'step')} of warm-up{shortened}",
            *[f"a batch of {config.batch_size:,} shows some images more than once"]
            * (plan.images < config.batch_size),
        ]
    rows = {
        "choices": choices and ["made for these images and this machine; what is typed binds them", *choices],
        "data": [f"{images.describe()}; {_in_words(feed)}", *images.notes, *_seen_before(config, feed)],
        "model": [*([f"{parameters:,} parameters{frozen}"] if parameters else []), *method.notes.about],
        "training": training,
        "machine": [f"{session.compute.world} x {device}, {precision}{memory}"],
        "time": [f"about {duration(seconds)} for the whole run"] if seconds else ["not measured"] * (training != []),
        "results": [config.out],
    }
    for heading, lines in rows.items():
        for number, line in enumerate(lines):
            session.console.say(f"{'' if number else heading:<11}{line}", hang=11)


def conclude(session: Session[Any], notes: Notes, results: Mapping[str, Any], bad_files: int) -> None:
    """What is on disk now, and what to type next."""
    out, say = session.config.out, session.console.say
    if bad_files:
        say(f"damaged files skipped: {bad_files:,}")
    for line in (*notes.conclusion(results), *(verdict["text"] for verdict in results["verdict"])):
        say(line)
    say(f"done in {duration(results['seconds'])}; the model is in {Path(out) / MODEL}")
    best = results["best"]
    if (Path(out) / MODEL_BEST).exists() and best[best["monitor"]] != results["last"].get(best["monitor"]):
        figure = brief_line({best["monitor"]: best[best["monitor"]]})
        say(
            f"{Path(out) / MODEL_BEST} holds that of the best evaluation: {figure} after step {best['step']:,}, "
            f"{best['remark']}, which flatters it"
        )
    page = Path(out) / REPORT
    if session.compute.main and (results["seconds"] > SHORT or page.exists()):
        _write_page(Path(out), say)
    if part_of_journey.get():
        return
    say(f"open {page} in a browser" if page.exists() else f"next: beit report {out}")
    mends = dict.fromkeys(verdict["mend"] for verdict in results["verdict"] if verdict["mend"])
    for mend in mends:
        say(f"to mend first: {mend}")
    if notes.next_command and not mends:
        say(f"next: {notes.next_command}")


def with_page(method: Method, run: RunDirectory) -> Method:
    """`method`, whose drawings are followed by the page of the run, every few minutes."""
    evaluation, due = method.evaluation, PAGE_EVERY

    def draw(*drawn: Any) -> None:
        nonlocal due
        assert evaluation.draw is not None
        evaluation.draw(*drawn)
        if run.elapsed > due:
            _write_page(run.path, run.console.say)
            due = run.elapsed + PAGE_EVERY

    return dataclasses.replace(method, evaluation=dataclasses.replace(evaluation, draw=evaluation.draw and draw))


def _write_page(folder: Path, say: Callable[[str], None]) -> None:
    """report.html of the run in `folder`, as it is now. What goes wrong with it is said, and ends nothing."""
    from beit.training.run.record import read_run
    from beit.visualize.report import write_report

    try:
        write_report([read_run(folder)])
    except Exception as error:  # of a page for a person, beside hours of training
        say(f"{REPORT} could not be written: {error}")


def _in_words(feed: Feed) -> str:
    """What the run is judged on, and how little it tells where it is few."""
    from beit.verdicts.rules import few_images

    few = few_images(feed.judged)
    val = len(feed.images.held_back)
    test = "" if feed.images.test is None else f", {len(feed.images.test):,} (test) once at the end"
    if not val:
        return f"none held back, so that nothing is chosen and no verdict given{test}"
    return f"{val:,} (val) to evaluate on{test}{few and f'; {few}'}"


def _seen_before(config: TrainingConfig, feed: Feed) -> list[str]:
    """How many of the images that the run is judged on its start was trained on."""
    judged = {"val": feed.images.held_back, "test": feed.images.test}
    named = {name: source for name, source in judged.items() if source}
    starts = {flag: getattr(config, flag, None) for flag in ("init", "tokenizer", "teacher")}
    return [line for flag, model in starts.items() if model for line in notes_on_start(f"--{flag}", model, named)]
