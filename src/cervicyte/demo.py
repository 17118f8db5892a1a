"""The main job on synthetic cells, from nothing to the dashboard, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path

from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import cells_of, read_split
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.evaluation.run import SPLIT_NAME, train_and_evaluate
from cervicyte.explanation.gallery import explain_cells
from cervicyte.network.model_file import load_model_file
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY
from cervicyte.training.loop import MODEL_NAME

CELLS = 600
SEED = 0
EXPLAINED_PER_CLASS = 2
# From scratch on small images: no weights are downloaded, and two cores see each cell often enough.
RECIPE = {
    "backbone": "none",
    "preprocessing.image_size": 64,
    "epochs": 16,
    "patience": 16,
    "learning_rate": 1e-3,
    "layer_decay": 1.0,
    "ema_decay": 0.95,
    "batch_size": 16,
}


def run_demo(
    out: Path,
    *,
    serve_page: bool = True,
    port: int = 7860,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict:
    """Draw cells, train, evaluate, explain, say where all of it lies, and open the dashboard.

    An interrupted demo goes on where it stopped; a finished one trains no more.

    Returns:
        The figures of the run's `metrics.json`.
    """
    progress.say(f"Cervicyte demo. {RESEARCH_USE_ONLY}")
    data, run = out / "synthetic", out / "run"
    cells = write_dataset(data, CELLS, SEED, progress)
    metrics = train_and_evaluate(
        cells, run, overrides=RECIPE, resume=True, command=command, progress=progress
    )
    model = load_model_file(run / MODEL_NAME)
    dataset = read_dataset(cells)
    tested = cells_of(read_split(run / SPLIT_NAME), dataset, "test")
    chosen = [
        cell
        for name in dataset.classes
        for cell in [cell for cell in tested if cell.label == name][:EXPLAINED_PER_CLASS]
    ]
    # At 64 pixels the last layer's map has two by two places; the one before it shows more.
    index = explain_cells(
        model, chosen, run, layers=("cbam3", "cbam4"), force=True, command=command, progress=progress
    ).page

    accuracy = metrics["overall"]["accuracy"]
    progress.say(
        f"\nAccuracy on {metrics['cells']} synthetic cells kept aside: {accuracy['value']:.1%}, "
        f"95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}\n"
        f"  cells      {cells}\n  model      {run / MODEL_NAME}\n  report     {run / 'report.html'}\n"
        f"  heat maps  {index}\n{RESEARCH_USE_ONLY}"
    )
    if serve_page:
        from cervicyte.dashboard.server import serve

        serve(run / MODEL_NAME, port=port)
    return metrics
