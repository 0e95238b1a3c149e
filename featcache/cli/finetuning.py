"""Words that say how to fine-tune enter; scores, curves and a saved network leave."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import (
    FILE,
    OUTPUT,
    SOURCE,
    Bar,
    SourceCommand,
    cache_option,
    make_options,
    plotter,
    seed_option,
    several,
    show_page,
    table_options,
    weights_option,
)

if TYPE_CHECKING:
    from featcache.records.finetuning import EpochRow

_training = several(
    click.option(
        "--unfreeze",
        default="last",
        show_default=True,
        help="head (only the new top), last, N (last blocks), all, or the name of the first block.",
    ),
    click.option("--epochs", type=click.IntRange(min=1), default=25, show_default=True, help="How many."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Pictures a step."),
    click.option("--optimizer", default="sgd", show_default=True, help="sgd (momentum 0.9) or adamw."),
    click.option("--schedule", default="step", show_default=True, help="step (x 0.1 every 7 epochs) or cosine."),
    click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate of the new top."),
    click.option(
        "--backbone-lr", type=float, default=1.0, show_default=True, help="Pretrained layers learn with so many --lr."
    ),
    click.option("--warmup", type=click.IntRange(min=0), default=0, show_default=True, help="Epochs of the top alone."),
    click.option("--augment", default="none", show_default=True, help="none, flip, crop or full; training only."),
    click.option(
        "--augment-views", "views", type=click.IntRange(min=1), default=4, show_default=True,
        help="Draws of each picture that the partial cache keeps.",
    ),
    click.option("--dropout", type=float, default=0.0, show_default=True, help="Before the last layer."),
    click.option("--label-smoothing", type=float, default=0.0, show_default=True, help="Share spread over classes."),
    click.option("--class-weights", is_flag=True, help="Let rare classes weigh as much as common ones."),
    click.option("--clip-norm", type=float, help="Clip the norm of gradients here."),
    click.option("--patience", type=click.IntRange(min=1), help="Stop after so many epochs without a better one."),
    click.option("--mixed-precision", is_flag=True, help="Calculate in 16 bit where it is safe; CUDA only."),
)  # fmt: skip


@click.command(cls=SourceCommand)
@click.argument("source", type=SOURCE, required=False)
@_training
@click.option(
    "--backbone",
    default="auto",
    show_default=True,
    help="As in extract; with SOURCE. scratch-cnn: a small ConvNet from nothing. runs:N: what run N fine-tuned.",
)
@weights_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--partial-cache-limit", "limit", type=click.FloatRange(min=0), default=10.0, show_default=True,
    help="GB that what the frozen blocks give may take in the cache; 0: run them in every epoch.",
)  # fmt: skip
@click.option("--plot", type=OUTPUT, help="Draw loss and accuracy to this .png, .svg or .pdf.")
@click.option("--tensorboard", type=FILE, help="Write scalars for TensorBoard to this folder.")
@seed_option
@cache_option
@table_options
def finetune(
    source: str | None,
    limit: float,
    plot: Path | None,
    tensorboard: Path | None,
    seed: int,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    backbone: str,
    weights: Path | None,
    device: str,
    cache: Path | None,
    **training: Any,
) -> None:
    """Train the last blocks of the network on the dataset last extracted, or on SOURCE, and score it beside logreg.

    The new top begins as logreg. What the frozen blocks give is kept in the cache. Stopped, it goes on after the last
    whole epoch when the same command is given again. The score is on the split that the heads are scored on.
    """
    from featcache import api, render
    from featcache.api.outputs import refuse_cache
    from featcache.render.tensorboard import Board

    options = make_options({"backbone": backbone, "weights": weights, "device": device, "cache": cache})
    draw = plotter(plot, "finetune_figure")
    if tensorboard:
        refuse_cache(tensorboard / "events")
    with ExitStack() as stack:
        bar = stack.enter_context(Bar())
        board = stack.enter_context(Board(tensorboard)) if tensorboard else None

        def on_epoch(row: EpochRow) -> None:
            bar.say(f"loss {row.val_loss:.3f}, accuracy {row.val_accuracy:.3f}")
            if board:
                board.add(row)

        summary = api.finetune(source, api.Training(**training), seed, options, bar, round(limit * 1e9), on_epoch)
    draw(summary)
    show_page(as_json, summary, render.finetune_page, csv, md)
