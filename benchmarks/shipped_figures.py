"""Write src/cervicyte/model/figures.json: what the dashboard shows of the shipped model and its file lacks.

    python benchmarks/shipped_figures.py

Counts the confusion matrix in the predictions of its cross-validation, each by a network that had not seen
the cell, and takes what adapting brought from `cervicyte elsewhere`; both lie in docs/results/model. No
figure is typed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cervicyte.evaluation.familiarity import FEWEST_IMAGES
from cervicyte.evaluation.shipped_figures import (
    FILE_NAME,
    Confusion,
    Gain,
    Interval,
    ShippedFigures,
    Source,
)
from cervicyte.metrics import confusion_matrix
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import load_model_file, weights_hash
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file, write_json

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "docs" / "results" / "model"
ALL_CLASSES = "abnormal_auc_all"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def source_of(path: Path, command: str, commit: str) -> Source:
    """Return where a figure was taken from."""
    name = path.relative_to(PROJECT).as_posix()
    return Source(file=name, sha256=sha256_of_file(path), command=command, commit=commit)


def confusion_of(folder: Path) -> Confusion:
    """Count the predictions of a cross-validation."""
    summary = read(folder / "cross_validation.json")
    names = summary["class_names"]
    table = pd.read_csv(folder / "predictions.csv")
    truth, predicted = (
        table[name].map({name: place for place, name in enumerate(names)}).to_numpy()
        for name in ("true_class", "predicted_class")
    )
    counts = confusion_matrix(truth, predicted, len(names)).astype(int)
    return Confusion(
        class_names=names,
        counts=counts.tolist(),
        groups=table["group"].nunique(),
        source=source_of(
            folder / "predictions.csv", summary["context"]["command"], summary["provenance"]["commit"]
        ),
    )


def gain_of(path: Path, weights: str) -> Gain:
    """Take what adapting to the fewest images brought a model."""
    content = read(path)
    assert content["weights_sha256"] == [weights], f"{path} speaks of another model"
    (adapted,) = (one for one in content["adapted"] if one["images"] == FEWEST_IMAGES)
    provenance = content["provenance"]
    return Gain(
        data=content["data"],
        images=adapted["images"],
        before=Interval(**content["figures"][ALL_CLASSES]),
        after=Interval(**adapted["figures"][ALL_CLASSES]),
        difference=Interval(**adapted["less_zero_shot"][ALL_CLASSES]),
        source=source_of(path, provenance["command"], provenance["commit"]),
    )


def figures() -> ShippedFigures:
    """Return the file's content, from what lies in docs/results."""
    weights = weights_hash(load_model_file(shipped_model()).network)
    return ShippedFigures(
        notice=RESEARCH_USE_ONLY,
        weights_sha256=weights,
        confusion=confusion_of(RESULTS / "group"),
        adaptation=gain_of(RESULTS / "elsewhere_shipped" / "elsewhere.json", weights),
    )


def main() -> None:
    """Write the file beside the model."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    out = shipped_model().with_name(FILE_NAME)
    write_json(out, figures().model_dump(mode="json"))
    print(out.relative_to(PROJECT))


if __name__ == "__main__":
    main()
