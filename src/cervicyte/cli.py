"""The command line: one short function a command, each of which only calls its room.

Torch and its friends are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cervicyte import __version__
from cervicyte.errors import CervicyteError, UsageError, to_install
from cervicyte.provenance import RESEARCH_USE_ONLY, as_utf8, refuse_to_replace

DEFAULT_RUN = Path("cbam_resnet50_cervical")
OF_TORCH = {"torch", "torchvision", "accelerate", "cleanlab"}
"""What an installation for answering alone, without the extra `train`, leaves out."""

GO_ON = {
    "ablate",
    "audit",
    "cross-validate",
    "inspect",
    "optimism",
    "predict",
    "release",
    "train",
    "train-together",
}
"""Commands that, repeated after an interruption, do not begin anew."""


MAY_BE_EMPTY = ("--root-path", "--ray-address")
"""Options whose value may be no text at all."""


class PlainErrors(TyperGroup):
    """Commands whose errors are one sentence and status 2, and which Ctrl-C ends with 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed for `invoke`, and read it."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            refuse_empty(ctx.meta[__name__])
            return super().invoke(ctx)
        except CervicyteError as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
        except OSError as error:
            if error.filename is None:
                raise
            reason = (error.strerror or "cannot be used").lower()
            typer.secho(
                f"Error: {error.filename}: {reason}; check the path, its permissions and the disk.",
                fg="red",
                err=True,
            )
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in OF_TORCH:
                raise
            typer.secho(
                f"Error: cervicyte {ctx.invoked_subcommand} needs torch; install it with: "
                f"{to_install('train')}.",
                fg="red",
                err=True,
            )
        except KeyboardInterrupt:
            goes_on = (
                " What was finished is on disk: repeat the command to go on, with --resume if it has that "
                "option."
            )
            typer.echo(f"Stopped.{goes_on if ctx.invoked_subcommand in GO_ON else ''}", err=True)
            raise typer.Exit(130) from None
        raise typer.Exit(2)


def refuse_empty(typed: Sequence[str]) -> None:
    """Raise a UsageError where an argument or a value is empty, as of a shell's variable that is not set.

    A path that is empty would be taken for the current folder.
    """
    for before, one in pairwise(["cervicyte", *typed]):
        option, has_value, value = one.partition("=") if one.startswith("--") else (before, "=", one)
        if has_value and not value and option not in MAY_BE_EMPTY:
            # What stands before may be a value, such as a token.
            what = f"What follows {option}" if option.startswith("--") else "An argument"
            raise UsageError(f"{what} is empty; give a name or a value, `.` for the current folder.")


app = typer.Typer(
    name="cervicyte",
    cls=PlainErrors,
    help=f"Tell cervical cells apart in Pap-smear images. {RESEARCH_USE_ONLY}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Path, typer.Argument(help="Folder of labelled cells, or a CSV or Parquet manifest.")]
Model = Annotated[
    Path | None,
    typer.Argument(
        help="A model file, .safetensors or .pth, ours or the original's; without one, the model that ships "
        "with Cervicyte.",
        show_default=False,
    ),
]
Answering = Annotated[
    Path | None,
    typer.Argument(
        help="A model file, .safetensors or .pth, ours or the original's, or an exported .onnx or .xml; "
        "without one, the model that ships with Cervicyte.",
        show_default=False,
    ),
]
EngineName = Annotated[
    Literal["auto", "torch", "onnx", "openvino"] | None,
    typer.Option(
        "--engine",
        help="What computes; auto: the fastest that is installed and right. Default: torch, or auto where "
        "torch is not installed or a graph is given.",
        show_default=False,
    ),
]
OfMultiplications = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option("--precision", help="Of the engine's multiplications; bfloat16 is faster."),
]
Recipe = Annotated[Path | None, typer.Option("--recipe", help="Settings in YAML; see docs/recipe.md.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any setting; repeatable.")
]
Backbone = Annotated[str | None, typer.Option(help="First weights: imagenet (default), none, or a file.")]
Seeds = Annotated[str, typer.Option(help="One or more, with commas; each draws folds and training.")]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Probe frozen features (minutes) instead of training (hours).")
]
By = Annotated[str | None, typer.Option(help="Keep whole: group (default), field or cell.")]
Folds = Annotated[int | None, typer.Option(help="Number of folds; one is the test part. Default 5.")]
Fold = Annotated[int | None, typer.Option(help="Which fold is the test part, from 0. Default 0.")]
SplitSeed = Annotated[int | None, typer.Option("--split-seed", help="Draws the folds. Default 0.")]
SplitFile = Annotated[Path | None, typer.Option("--split", help="A split file, instead of a new split.")]
AllowLeak = Annotated[
    Literal["field", "cell"] | None,
    typer.Option(
        "--allow-leak",
        help="Use a split whose groups (field) or even fields (cell) stand on both sides; figures flatter.",
    ),
]
KnownGroups = Annotated[
    bool, typer.Option("--known-groups/--no-known-groups", help="Use the shipped SIPaKMeD field groups.")
]
Pictures = Annotated[
    bool, typer.Option("--images/--no-images", help="Show mistaken cells in the report, or charts only.")
]
HeadName = Annotated[
    str | None,
    typer.Option("--head", help="Of a model trained on several data sets: the one whose classes to take."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier run left there.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cervicyte {__version__}\n{RESEARCH_USE_ONLY}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def inspect(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the four files.")] = Path("inspection"),
    label_errors: Annotated[
        bool, typer.Option("--label-errors", help="Look for likely label errors, with a frozen network.")
    ] = False,
    shortcuts: Annotated[
        bool, typer.Option("--shortcuts", help="Look for what predicts the class besides the cell.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="The frozen weights: imagenet or a file.")] = "imagenet",
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Look even with weights that were trained on these cells.")
    ] = False,
    known_groups: KnownGroups = True,
) -> None:
    """Look for twins, traps and outliers among the cells; status 1 if there are findings."""
    from cervicyte.datasets.inspection import inspect_dataset
    from cervicyte.pages import plural
    from cervicyte.progress import TerminalProgress

    progress = TerminalProgress()
    look_closer = None
    if label_errors or shortcuts:
        from cervicyte.evaluation.closer_look import closer_look

        look_closer = closer_look(
            out,
            label_errors=label_errors,
            shortcuts=shortcuts,
            backbone=backbone,
            allow_seen=allow_seen,
            progress=progress,
        )
    inspection = inspect_dataset(
        data,
        out,
        known_groups=known_groups,
        look_closer=look_closer,
        progress=progress,
        command=_command_line(),
    )
    for finding in inspection.findings:
        typer.echo(f"{finding.kind}: {finding.text}")
    count = len(inspection.findings)
    typer.echo(f"{out / 'inspection.html'}: {count} {plural('finding', count)}")
    if inspection.findings:
        raise typer.Exit(1)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The run folder.")] = DEFAULT_RUN,
    recipe: Recipe = None,
    set_: Settings = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Start from this model instead of a backbone; `shipped`: the one that ships with Cervicyte.",
        ),
    ] = None,
    backbone: Backbone = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's input in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cells, at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws weights, batches and augmentation.")] = None,
    split: SplitFile = None,
    by: By = None,
    folds: Folds = None,
    fold: Fold = None,
    split_seed: SplitSeed = None,
    allow_leak: AllowLeak = None,
    known_groups: KnownGroups = True,
    images: Pictures = True,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train on labelled cells, evaluate on those kept aside, and leave a run folder."""
    from cervicyte.evaluation.run import SplitChoice, train_and_evaluate
    from cervicyte.progress import TerminalProgress
    from cervicyte.training.recipe import parse_override

    overrides = dict(parse_override(text) for text in set_ or ())
    named = {
        "parent": from_,
        "backbone": backbone,
        "preprocessing.image_size": image_size,
        "epochs": epochs,
        "seed": seed,
    }
    overrides |= {key: value for key, value in named.items() if value is not None}
    metrics = train_and_evaluate(
        data,
        out,
        recipe_file=recipe,
        overrides=overrides,
        split_choice=SplitChoice(split, by, folds, fold, split_seed, allow_leak),
        with_pictures=images,
        known_groups=known_groups,
        resume=resume,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    if metrics:
        _say_result(metrics, out)


@app.command("train-together")
def train_together(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Folders of labelled cells, or manifests; NAME=DATA to name one otherwise.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("together"),
    sides: Annotated[
        Path | None,
        typer.Option(
            help="YAML: below each data set's name, lines `class: normal`, `benign` or `abnormal`, for "
            "classes that are not SIPaKMeD's or Herlev's."
        ),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(help="Train on the others, and measure normal against abnormal on this data set."),
    ] = None,
    recipe: Recipe = None,
    set_: Settings = None,
    backbone: Backbone = None,
    folds: Folds = None,
    fold: Fold = None,
    split_seed: SplitSeed = None,
    known_groups: KnownGroups = True,
    images: Pictures = True,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train one network on several data sets: a head for each class list, and one normal/abnormal answer."""
    from cervicyte.evaluation.run import SplitChoice
    from cervicyte.evaluation.together import PAGE_NAME, train_together
    from cervicyte.progress import TerminalProgress
    from cervicyte.training.recipe import parse_override

    overrides = dict(parse_override(text) for text in set_ or ())
    overrides |= {} if backbone is None else {"backbone": backbone}
    train_together(
        data,
        out,
        recipe_file=recipe,
        overrides=overrides,
        sides=sides,
        leave_out=leave_out,
        split_choice=SplitChoice(None, None, folds, fold, split_seed),
        with_pictures=images,
        known_groups=known_groups,
        resume=resume,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    if (out / PAGE_NAME).is_file():
        typer.echo((out / PAGE_NAME).read_text(encoding="utf-8"))


@app.command()
def evaluate(
    model: Model = None,
    *,
    data: Annotated[Path, typer.Option(help="Folder of labelled cells, or a manifest.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    split: Annotated[Path | None, typer.Option(help="Take the cells of one part of this split.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Which part of --split: train, validation or test. Default test.")
    ] = None,
    class_map: Annotated[
        Path | None, typer.Option(help="YAML of lines `data set's class: model's class`.")
    ] = None,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Evaluate even cells that were seen in training.")
    ] = False,
    allow_leak: AllowLeak = None,
    head: HeadName = None,
    known_groups: KnownGroups = True,
    images: Pictures = True,
    force: Force = False,
) -> None:
    """Evaluate a model on labelled cells that it has not seen."""
    from cervicyte.evaluation.run import evaluate_model, read_class_map
    from cervicyte.progress import TerminalProgress

    metrics = evaluate_model(
        _model_file(model),
        data,
        out,
        split_file=split,
        part=part,
        class_map=read_class_map(class_map) if class_map else None,
        allow_seen=allow_seen,
        allow_leak=allow_leak,
        head=head,
        with_pictures=images,
        known_groups=known_groups,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    _say_result(metrics, out)


@app.command()
def probe(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("linear_probe"),
    backbone: Annotated[str, typer.Option(help="The frozen weights: imagenet or a file.")] = "imagenet",
    image_size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side of the network's input in pixels.")
    ] = 224,
    split: SplitFile = None,
    by: By = None,
    folds: Folds = None,
    fold: Fold = None,
    split_seed: SplitSeed = None,
    allow_leak: AllowLeak = None,
    known_groups: KnownGroups = True,
    force: Force = False,
) -> None:
    """Evaluate the control: logistic regression on frozen ImageNet features."""
    from cervicyte.evaluation.run import SplitChoice, probe
    from cervicyte.images.preprocessing import Preprocessing
    from cervicyte.progress import TerminalProgress

    metrics = probe(
        data,
        out,
        backbone=backbone,
        preprocessing=Preprocessing(image_size=image_size),
        split_choice=SplitChoice(split, by, folds, fold, split_seed, allow_leak),
        known_groups=known_groups,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    _say_result(metrics, out)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders over the same test cells.")],
    out: Annotated[Path | None, typer.Option(help="CSV file that takes the table as well.")] = None,
    force: Force = False,
) -> None:
    """Compare runs over the same test cells, paired, with intervals of the differences."""
    from cervicyte.evaluation.cross_validation_page import comparison_text
    from cervicyte.evaluation.tables import comparison_table, read_predictions, write_table

    twice = [run for place, run in enumerate(runs) if run in runs[:place]]
    if twice:
        raise UsageError(f"{twice[0]}: is named twice; name each run once, the one to compare with first.")
    if out is not None:
        refuse_to_replace(out, force)
    table = comparison_table({str(run): read_predictions(run) for run in runs})
    if out is not None:
        write_table(table, out)
    typer.echo(comparison_text(table.to_dict("records")))
    typer.echo(RESEARCH_USE_ONLY)


@app.command("cross-validate")
def cross_validate(
    data: Data,
    out: Annotated[Path, typer.Option(help="Takes a run folder for each fold.")] = Path("cross_validation"),
    by: Annotated[str, typer.Option(help="Keep whole: group, field or cell.")] = "group",
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    seeds: Seeds = "0",
    only_fold: Annotated[
        list[int] | None, typer.Option(help="Do this fold alone, without the tables; repeat for more.")
    ] = None,
    frozen: Frozen = False,
    recipe: Recipe = None,
    set_: Settings = None,
    backbone: Backbone = None,
    allow_leak: AllowLeak = None,
    known_groups: KnownGroups = True,
    images: Pictures = True,
) -> None:
    """Test every cell once, in folds by group; goes on where it was interrupted."""
    from cervicyte.evaluation.cross_validation import cross_validate
    from cervicyte.progress import TerminalProgress
    from cervicyte.training.recipe import parse_override

    summary = cross_validate(
        data,
        out,
        recipe_file=recipe,
        overrides=dict(parse_override(text) for text in set_ or ()),
        folds=folds,
        seeds=_numbers(seeds),
        by=by,  # type: ignore[arg-type]  # refused by name if it is none of the three
        frozen=frozen,
        backbone=backbone,
        allow_leak=allow_leak,
        known_groups=known_groups,
        only_folds=only_fold or (),
        with_pictures=images,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    done = f"{summary['cells']:,} cells, each tested once a seed" if summary else "these folds are done"
    typer.echo(f"{out}: {done}")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def release(
    data: Data,
    folds: Annotated[Path, typer.Option(help="The folder of a finished cross-validation by group.")],
    out: Annotated[Path, typer.Option(help="Takes the model and its card.")] = Path("release"),
    backbone: Backbone = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the card.")] = None,
    known_groups: KnownGroups = True,
) -> None:
    """Train on all cells as a cross-validation did, and attach what that found out; resumable."""
    from cervicyte.evaluation.release import CARD_NAME, RELEASED_NAME, release
    from cervicyte.progress import TerminalProgress

    release(
        data,
        folds,
        out,
        backbone=backbone,
        licence=licence,
        known_groups=known_groups,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    path = out / RELEASED_NAME
    typer.echo(f"{path}: the model, {path.stat().st_size / 1e6:.1f} MB; {out / CARD_NAME}: its card")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def optimism(
    data: Data,
    out: Annotated[Path, typer.Option(help="Takes the folds of each split, and the tables.")] = Path(
        "optimism"
    ),
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    seeds: Seeds = "0",
    frozen: Frozen = False,
    recipe: Recipe = None,
    set_: Settings = None,
    backbone: Backbone = None,
    images: Pictures = True,
) -> None:
    """Show how much splits by cell and by field flatter, against the split by group."""
    from cervicyte.evaluation.optimism import optimism
    from cervicyte.progress import TerminalProgress
    from cervicyte.training.recipe import parse_override

    optimism(
        data,
        out,
        frozen=frozen,
        recipe_file=recipe,
        overrides=dict(parse_override(text) for text in set_ or ()),
        folds=folds,
        seeds=_numbers(seeds),
        backbone=backbone,
        with_pictures=images,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    typer.echo((out / "optimism.md").read_text(encoding="utf-8"))


@app.command()
def robustness(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, such as all folds.")],
    data: Annotated[Path, typer.Option(help="The labelled cells that they were trained on.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("robustness"),
    cells: Annotated[
        int | None, typer.Option(min=1, help="About so many, in whole groups drawn at random. Default: all.")
    ] = None,
    known_groups: KnownGroups = True,
) -> None:
    """Measure what is left of the accuracy on test cells that are blurred, noisy or stained anew."""
    from cervicyte.evaluation.robustness import robustness
    from cervicyte.progress import TerminalProgress

    robustness(
        runs,
        data,
        out,
        cells=cells,
        known_groups=known_groups,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    typer.echo((out / "robustness.md").read_text(encoding="utf-8"))


@app.command()
def elsewhere(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Model files or run folders, such as all folds.")
    ],
    data: Annotated[Path, typer.Option(help="Another laboratory's labelled cells.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("elsewhere"),
    adapt: Annotated[
        str | None,
        typer.Option(help="Measure it adapted to so many unlabelled images too, with commas: 64,200."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Of the images to adapt to.")] = 3,
    white_point: Annotated[
        bool, typer.Option("--white-point/--no-white-point", help="Match the background's light too.")
    ] = True,
    framing: Annotated[
        bool,
        typer.Option("--framing/--no-framing", help="Keep small crops small, in a second look too."),
    ] = True,
) -> None:
    """Measure how well networks tell normal from abnormal among another laboratory's cells."""
    from cervicyte.evaluation.elsewhere import elsewhere
    from cervicyte.progress import TerminalProgress

    elsewhere(
        models,
        data,
        out,
        adapt=_numbers(adapt, "--adapt", "64,200") if adapt else (),
        draws=draws,
        white_point=white_point,
        framing=framing,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    typer.echo((out / "elsewhere.md").read_text(encoding="utf-8"))


@app.command("learning-curve")
def learning_curve(
    data: Data,
    from_: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The model to start from, which has not seen them.")
    ] = "shipped",
    cells: Annotated[
        str, typer.Option(help="Numbers of cells a class; 0: the model as it is.")
    ] = "0,5,10,25,50",
    draws: Annotated[int, typer.Option(min=1, help="Of tested groups and training cells.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    backbone: Annotated[
        str | None, typer.Option(help="Compare with a network of these weights: imagenet, or a file.")
    ] = None,
    last_stage: Annotated[
        bool, typer.Option("--last-stage", help="Let the last stage learn too; half a minute a draw.")
    ] = False,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt the model first, to the cells that do not test.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("learning_curve"),
) -> None:
    """Measure what a few labelled cells of another laboratory bring, by their number."""
    from cervicyte.evaluation.learning_curve import learning_curve
    from cervicyte.progress import TerminalProgress

    learning_curve(
        _model_file(None if from_ == "shipped" else Path(from_)),
        data,
        out,
        counts=_numbers(cells, "--cells", "0,5,25"),
        draws=draws,
        seed=seed,
        backbone=backbone,
        last_stage=last_stage,
        adapt=adapt,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    typer.echo((out / "learning_curve.md").read_text(encoding="utf-8"))


@app.command()
def ablate(
    data: Data,
    plan: Annotated[Path, typer.Argument(help="What is compared, in YAML; see docs/ablation.md.")],
    out: Annotated[Path, typer.Option(help="Takes the trainings and the tables.")] = Path("ablation"),
    set_: Settings = None,
    backbone: Backbone = None,
    known_groups: KnownGroups = True,
    only: Annotated[list[str] | None, typer.Option(help="Train this variant; repeat for more.")] = None,
    elsewhere: Annotated[
        Path | None, typer.Option(help="Another laboratory's labelled cells; judged on, never trained on.")
    ] = None,
    keep_models: Annotated[bool, typer.Option(help="Keep every model file, 100 MB each.")] = False,
) -> None:
    """Compare variants of a recipe, one change at a time, on inner groups; the test part stays closed."""
    from cervicyte.evaluation.ablation import ablate, read_plan
    from cervicyte.progress import TerminalProgress
    from cervicyte.training.recipe import parse_override

    overrides = dict(parse_override(text) for text in set_ or ())
    overrides |= {} if backbone is None else {"backbone": backbone}
    ablate(
        data,
        out,
        read_plan(plan, overrides),
        known_groups=known_groups,
        only=only or (),
        elsewhere=elsewhere,
        keep_models=keep_models,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    typer.echo((out / "ablation.md").read_text(encoding="utf-8"))


@app.command()
def split(
    data: Data,
    out: Annotated[Path, typer.Option(help="The split file.")] = Path("split.csv"),
    by: By = None,
    folds: Folds = None,
    fold: Fold = None,
    split_seed: SplitSeed = None,
    allow_leak: AllowLeak = None,
    known_groups: KnownGroups = True,
    force: Force = False,
) -> None:
    """Write a split into train, validation and test that keeps groups whole."""
    from cervicyte.datasets.layouts import read_dataset
    from cervicyte.datasets.splits import (
        leak_of,
        make_split,
        refuse_to_replace_split,
        split_hash,
        write_split,
    )
    from cervicyte.pages import counted

    refuse_to_replace_split(out, force)
    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        typer.echo(f"Note: {warning}", err=True)
    options = {"by": by, "folds": folds, "fold": fold, "seed": split_seed}
    stated: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    made = make_split(dataset, **stated, allow_leak=allow_leak)
    write_split(made, out)
    if leak := leak_of(made):
        typer.echo(f"Note: {leak} Whoever uses the split must name the leak: --allow-leak {by}.", err=True)
    for part, rows in made.groupby("part", sort=False):
        typer.echo(f"{part}: {counted(len(rows), 'cell')} in {counted(rows['group'].nunique(), 'group')}")
    typer.echo(f"{out}: written; hash {split_hash(made)[:16]}")


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder that takes cells/, masks/ and synthetic.json.")],
    cells: Annotated[int, typer.Option(help="How many, over all five classes.")] = 500,
    seed: Annotated[int, typer.Option(help="Draws everything.")] = 0,
) -> None:
    """Draw synthetic Pap-smear cells of the five classes, with masks."""
    from cervicyte.datasets.synthetic import write_dataset
    from cervicyte.progress import TerminalProgress

    folder = write_dataset(out, cells, seed, TerminalProgress())
    typer.echo(f"{folder}: {cells} synthetic cells")


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Images, folders, zip archives, patterns, @FILE with a name a line or in Parquet in the "
            "column `path`, URIs of an object store, or - for names on standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The table, .csv or .parquet.")] = Path("predictions.csv"),
    model: Annotated[
        Path | None, typer.Option(help="Another model than the one that ships; an exported graph, too.")
    ] = None,
    engine: Annotated[
        Literal["auto", "torch", "onnx", "openvino", "ray"] | None,
        typer.Option(
            help="What computes; auto: the fastest that is installed and right; ray: many processes or "
            "machines, see docs/scale.md. Default: openvino for a .safetensors on a processor, else torch; "
            "auto where torch is not installed or a graph is given.",
            show_default=False,
        ),
    ] = None,
    precision: OfMultiplications = "float32",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster; without one, that of $RAY_ADDRESS, or this machine.", show_default=False
        ),
    ] = None,
    ray_engine: Annotated[
        Literal["auto", "torch", "onnx", "openvino"] | None,
        typer.Option(help="What computes in each worker. Default: as of --engine.", show_default=False),
    ] = None,
    ray_threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processors a worker takes; there are as many workers as that leaves room for. Default: 1.",
            show_default=False,
        ),
    ] = None,
    head: HeadName = None,
    force: Force = False,
) -> None:
    """Classify images into a table; an interrupted one is gone on with. Status 1 if some cannot be read."""
    from cervicyte.inference.classifier import Classifier
    from cervicyte.inference.predict import predict
    from cervicyte.pages import counted
    from cervicyte.progress import TerminalProgress

    file = _model_file(model)
    workers = None
    if engine == "ray":
        from cervicyte.inference.on_ray import RayWorkers
        from cervicyte.network.frozen import is_graph

        if is_graph(file):
            raise UsageError(f"--engine ray: {file} is a graph, and workers take a model file; name one.")

        workers = RayWorkers(file, ray_address, ray_threads or 1)
        engine = ray_engine
    elif (ray_address, ray_engine, ray_threads) != (None, None, None):
        raise UsageError("--ray-… is for --engine ray alone; choose that, or leave it out.")
    if engine is None:
        classifier = Classifier.as_usual(file, precision, head)
    else:
        classifier = Classifier.from_file(file, engine=engine, precision=precision, head=head)
    outcome = predict(
        classifier,
        images,
        out,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
        workers=workers,
    )
    for note in outcome.notes:
        typer.echo(f"Note: {note}", err=True)
    unread = f", {outcome.errors:,} of which could not be read" if outcome.errors else ""
    typer.echo(f"{out}: {counted(outcome.rows, 'image')}{unread}")
    typer.echo(RESEARCH_USE_ONLY)
    if outcome.errors:
        raise typer.Exit(1)


@app.command()
def adapt(
    model: Model = None,
    *,
    images: Annotated[
        list[str],
        typer.Option(help="Unlabelled images of the laboratory, 64 or more: a folder, archive or pattern."),
    ],
    out: Annotated[Path, typer.Option(help="The new model, .safetensors or .pth.")],
    force: Force = False,
) -> None:
    """Fit a model to another laboratory's unlabelled images, into a new file; see docs/your_own_images.md."""
    from cervicyte.inference.adapt import adapt, adaptation_text
    from cervicyte.progress import TerminalProgress

    content = adapt(
        _model_file(model), images, out, force=force, command=_command_line(), progress=TerminalProgress()
    )
    typer.echo(adaptation_text(content))
    for warning in content["warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(f"{out}: fitted to {content['images']:,} images; how good it is there is not known")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def explain(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] IMAGES...",
            help="Images, folders of images, or data sets; one or several. A model's file stands before "
            "them, or is named with --model; without one, the model that ships with Cervicyte.",
        ),
    ],
    model: Annotated[Path | None, typer.Option(help="The model, instead of the first argument.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that takes the pictures.")] = Path("explanation"),
    method: Annotated[
        str | None,
        typer.Option(help="grad-cam (default), grad-cam++, hirescam, layercam, or gates."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Of layer1, cbam1 … layer4, cbam4; repeatable. Default: layer4, with another engine than "
            "torch the last; gates: all."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "--class",
            help="A class, `all` (default), `contrast` (why the predicted class and not the runner-up) or "
            "`contrast:A,B`; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="At most so many cells of each class, or of each folder of images.")
    ] = 10,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Of a data set, take cells that were seen in training too.")
    ] = False,
    colormap: Annotated[
        str, typer.Option(help="inferno, cividis, viridis, or jet (the original's look).")
    ] = "inferno",
    arrays: Annotated[bool, typer.Option("--arrays", help="Write the raw maps too (.npz).")] = False,
    verdict: Annotated[
        bool, typer.Option("--verdict/--no-verdict", help="Hold each map against controls; takes most time.")
    ] = True,
    head: HeadName = None,
    engine: EngineName = None,
    precision: OfMultiplications = "float32",
    force: Force = False,
) -> None:
    """Show where in each cell the network sees evidence for a class, or which places its gates pass on."""
    from cervicyte.explanation.cam import DEFAULT_METHOD
    from cervicyte.explanation.gallery import explain_cells
    from cervicyte.explanation.samples import choose_cells
    from cervicyte.inference.classifier import Classifier
    from cervicyte.network.description import SAFETENSORS
    from cervicyte.network.frozen import is_graph
    from cervicyte.pages import counted
    from cervicyte.progress import TerminalProgress

    if model is None and (images[0].suffix in (".pth", SAFETENSORS) or is_graph(images[0])):
        model, *images = images
    if not images:
        raise UsageError(f"{model}: is all that was named; name one image or folder at least, too.")
    classifier = Classifier.from_file(_model_file(model), "cpu", engine, precision, head)
    by_torch = classifier.engine.name == "torch"
    if by_torch and precision != "float32":
        raise UsageError(f"Gradients are computed in float32; choose another --engine for {precision}.")
    chosen, notes = choose_cells(classifier.model, images, limit, allow_seen)
    gallery = explain_cells(
        classifier.model,
        chosen,
        out,
        method=method or DEFAULT_METHOD,
        layers=layer,
        targets=target,
        colours=colormap,
        arrays=arrays,
        with_verdicts=verdict,
        force=force,
        notes=[*notes, *classifier.engine.notes],
        engine=None if by_torch else classifier.engine,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    for note in gallery.notes:
        typer.echo(note)
    typer.echo(f"{gallery.page}: {counted(len(chosen), 'cell')} explained")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def audit(
    model: Model = None,
    *,
    data: Annotated[Path, typer.Option(help="Labelled cells that the model has not seen.")],
    split: Annotated[Path | None, typer.Option(help="Take only the cells of one part of this split.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Which part of --split: train, validation or test. Default test.")
    ] = None,
    cells: Annotated[int, typer.Option(min=2, help="How many, stratified by class and group.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder for page, figures and records.")] = Path("audit"),
    method: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all four.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Repeatable. Default: cbam3, layer4 and cbam4.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Of deletion and insertion.")] = 6,
    sanity_cells: Annotated[int, typer.Option(min=0, help="For randomised weights.")] = 30,
    stability_cells: Annotated[int, typer.Option(min=0, help="For changed images.")] = 60,
    seed: Annotated[int, typer.Option(help="Chooses the cells.")] = 0,
    class_map: Annotated[
        Path | None, typer.Option(help="YAML file: the data's class name -> the model's.")
    ] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Audit on training cells too.")] = False,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Show cells on the page.")] = True,
    known_groups: KnownGroups = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")] = False,
    force: Force = False,
) -> None:
    """Measure what the explanations of a model are worth, against controls that know nothing."""
    from cervicyte.evaluation.run import read_class_map
    from cervicyte.explanation.audit import audit_model
    from cervicyte.explanation.audit_cells import AuditSettings
    from cervicyte.explanation.cam import METHODS
    from cervicyte.pages import counted
    from cervicyte.progress import TerminalProgress

    figures = audit_model(
        _model_file(model),
        data,
        out,
        settings=AuditSettings(
            cells, tuple(method or METHODS), tuple(layer or ()), steps, sanity_cells, stability_cells, seed
        ),
        split_file=split,
        part=part,
        class_map=read_class_map(class_map) if class_map else None,
        allow_seen=allow_seen,
        with_pictures=images,
        known_groups=known_groups,
        resume=resume,
        force=force,
        command=_command_line(),
        progress=TerminalProgress(),
    )
    for sentence in figures["reading"]:
        typer.echo(f"- {sentence}")
    typer.echo(f"{out / 'explanation_audit.html'}: {counted(figures['cells_audited'], 'cell')} audited")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def export(
    model: Model = None,
    *,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="pth (as the original notebook), safetensors, onnx, openvino, torchscript, or wsinfer.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file, whose name ends with the format's, or the folder.")],
    spacing: Annotated[
        float | None, typer.Option(help="Micrometres a pixel of the network's input; wsinfer needs it.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Compare on these, not on the drawn cells that ship; repeatable."),
    ] = None,
    precision: Annotated[
        Literal["float32", "int8"],
        typer.Option(help="Of a graph, onnx or openvino; int8 only where it costs next to nothing."),
    ] = "float32",
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Real cells, 32 or more, that say how far values reach in int8; repeatable."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Labelled cells that the model has not seen, on which int8's loss is measured."),
    ] = None,
    head: HeadName = None,
    force: Force = False,
) -> None:
    """Write a model in another format, with all that travels in it; a graph only if it answers alike."""
    from cervicyte.inference.export import Int8, export_model
    from cervicyte.network.heads import load_with_head

    if precision != "int8" and (calibration or held_out):
        raise UsageError(
            "--calibration and --held-out are for --precision int8; say that, or leave them out."
        )
    notes = export_model(
        load_with_head(_model_file(model), head),
        out,
        format_,
        force=force,
        images=images or (),
        spacing=spacing,
        int8=Int8(calibration or (), held_out) if precision == "int8" else None,
        command=_command_line(),
    )
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
    written = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    typer.echo(f"{out}: written, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def card(
    model: Answering = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file that takes the card.")] = None,
    force: Force = False,
) -> None:
    """Show what a model is for, what is known of it and what is not, from its file alone."""
    from cervicyte.evaluation.model_card import model_card
    from cervicyte.network.frozen import load_described
    from cervicyte.provenance import write_text

    if out is not None:
        refuse_to_replace(out, force)
    text = model_card(load_described(_model_file(model)))
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    typer.echo(f"{out}: the model card")


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(help="A run folder of train, evaluate or probe, or a cross-validation.")
    ],
    checklist: Annotated[str, typer.Option(help="claim (CLAIM 2024) or tripod-ai (TRIPOD+AI).")],
    out: Annotated[
        Path | None, typer.Option(help="The Markdown file. Default: RUN/checklist_NAME.md.")
    ] = None,
    force: Force = False,
) -> None:
    """Draft a reporting checklist, a methods paragraph and BibTeX for a paper, from a run's own figures."""
    from cervicyte.evaluation.checklists import write_checklist

    path = write_checklist(run, checklist, out, force=force)
    typer.echo(f"{path}: the draft; what only you can say is marked in it")
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def serve(
    model: Answering = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    verdict: Annotated[
        bool,
        typer.Option("--verdict/--no-verdict", help="Hold each map against controls once it is shown."),
    ] = True,
    token: Annotated[
        str | None,
        typer.Option(help="Ask for it; better put it into CERVICYTE_TOKEN, as others see the command line."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which the server is called; repeatable.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Under which a proxy shows it, such as /cells.")] = "",
    log: Annotated[
        Path | None, typer.Option(help="Keep what readers call the cells in this file; off without it.")
    ] = None,
    head: HeadName = None,
    engine: EngineName = None,
    precision: OfMultiplications = "float32",
) -> None:
    """Open the dashboard in the browser."""
    from cervicyte.dashboard.server import serve

    serve(
        _model_file(model),
        host,
        port,
        open_browser=browser,
        with_verdicts=verdict,
        token=token,
        token_file=token_file,
        allowed_names=allow_host or (),
        root_path=root_path,
        log=log,
        head=head,
        engine=engine,
        precision=precision,
    )


log = typer.Typer(help="Check and export a reading log, see `cervicyte serve --log`.", no_args_is_help=True)
app.add_typer(log, name="log")
LogFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The log, as given to `cervicyte serve --log`.")
]


@log.command()
def verify(
    file: LogFile,
    expect: Annotated[
        str | None, typer.Option(help="A last hash that was noted earlier; it must still be in the log.")
    ] = None,
) -> None:
    """Say whether a reading log is as it was written. Status 1 if it is not."""
    from cervicyte.dashboard.reading_log import ReadingLog

    found = ReadingLog(file, create=False).verify(expect)
    if found.fault is not None:
        typer.secho(f"{file}: {found.fault} The first {found.rows:,} readings hold.", fg="red", err=True)
        raise typer.Exit(1)
    typer.echo(f"{file}: {found.rows:,} readings, all as they were written; last hash {found.last_hash}")
    typer.echo(
        "Note this hash elsewhere: with --expect it shows later that nothing was cut off or made anew."
    )


@log.command("export")
def log_export(
    file: LogFile,
    out: Annotated[Path, typer.Option(help="The table, .csv.")] = Path("readings.csv"),
    force: Force = False,
) -> None:
    """Write all readings as a table, and say how far reader and model agree."""
    from cervicyte.dashboard.reading_log import ReadingLog, export_readings
    from cervicyte.pages import counted

    readings = ReadingLog(file, create=False)
    export_readings(readings, out, force=force)
    typer.echo(f"{out}: {counted(len(readings.rows()), 'reading')}")
    typer.echo(readings.agreement().sentence)
    typer.echo(RESEARCH_USE_ONLY)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder that takes everything.")] = Path("cervicyte_demo"),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the dashboard at the end.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 7860,
) -> None:
    """Run the main job on synthetic cells: draw, train, evaluate, explain, open the dashboard."""
    from cervicyte.demo import run_demo
    from cervicyte.progress import TerminalProgress

    run_demo(out, serve_page=serve, port=port, command=_command_line(), progress=TerminalProgress())


def _model_file(named: Path | None) -> Path:
    from cervicyte.network.description import shipped_model

    return shipped_model() if named is None else named


def _numbers(text: str, option: str = "--seeds", example: str = "0,1,2") -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: must be whole numbers with commas, such as {example}.") from None


def _say_result(metrics: dict[str, Any], out: Path) -> None:
    from cervicyte.pages import counted

    accuracy = metrics["overall"]["accuracy"]
    typer.echo(f"Accuracy on {counted(metrics['cells'], 'cell')}: {_rate(accuracy)}")
    typer.echo(f"{out / 'report.html'}: the report")
    typer.echo(RESEARCH_USE_ONLY)


def _rate(figure: dict[str, float | None]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if value is None:
        return "undefined"
    interval = f" [{low:.1%}, {high:.1%}] (95 % interval over groups)" if low is not None else ""
    return f"{value:.1%}{interval}"


def _command_line() -> str:
    return as_utf8(shlex.join(["cervicyte", *sys.argv[1:]]))


def main() -> None:
    """Run the command line."""
    app()
