"""Whether cutting every cell out round its nucleus helps: at home, and on another laboratory's cells.

    python benchmarks/nucleus_framing.py ../shared/data/sipakmed --elsewhere ../shared/data/herlev \\
        --backbone ../shared/weights/resnet50_imagenet_v15_fp16.safetensors --out runs/nucleus_framing

Laboratories cut their cells out more or less closely. Here every crop is cut down to a square about the
middle of its nucleus, whose side is so many diameters of a disc of the nucleus' area, but never reaches
beyond the crop. A crop in which no nucleus is found stays as it is. The ablation's base is trained and
judged on such crops, on the same inner folds, and compared, paired, with the base on crops as they are.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cervicyte.datasets.layouts import read_dataset
from cervicyte.evaluation.ablation import (
    BASE,
    TITLES,
    ablate,
    elsewhere_against,
    figures_against,
    judged_cells,
    read_plan,
)
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.elsewhere import FIGURES
from cervicyte.images.reader import read_image
from cervicyte.images.segmentation import segment
from cervicyte.progress import Progress, TerminalProgress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text, written_atomically

DIAMETERS = 3.0
PLAN = Path("recipes/plans/ablation.yaml")
ABLATION = Path("docs/results/ablation")


def main() -> None:
    """Cut out, train, judge, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="labelled cells of the laboratory that is trained on")
    parser.add_argument("--elsewhere", type=Path, required=True, help="cells of another laboratory")
    parser.add_argument("--backbone", type=Path, required=True, help="first weights")
    parser.add_argument("--diameters", type=float, default=DIAMETERS, help="side of a crop, in nuclei")
    parser.add_argument("--plan", type=Path, default=PLAN, help="its base is trained")
    parser.add_argument(
        "--base", type=Path, default=ABLATION, help="the ablation that holds the base as it is"
    )
    parser.add_argument("--out", type=Path, required=True, help="takes crops, trainings and figures; goes on")
    options = parser.parse_args()
    command = shlex.join(["python", "benchmarks/nucleus_framing.py", *sys.argv[1:]])
    progress = TerminalProgress()
    plan = read_plan(options.plan, {"backbone": str(options.backbone)})
    cut, unfound = {}, {}
    for data in (options.data, options.elsewhere):
        cut[data] = options.out / "cells" / data.name
        unfound[data.name] = frame_all(data, cut[data], options.diameters, progress)
    trained = options.out / "ablation"
    ablate(
        cut[options.data],
        trained,
        plan,
        only=[BASE],
        elsewhere=cut[options.elsewhere],
        command=command,
        progress=progress,
    )
    base, own = (root / BASE for root in (options.base, trained))
    before, after = (judged_cells(folder, plan.judged) for folder in (base, own))
    assert before is not None
    assert after is not None
    content: dict[str, Any] = {
        "notice": RESEARCH_USE_ONLY,
        "data": options.data.name,
        "foreign": options.elsewhere.name,
        "diameters": options.diameters,
        "without_nucleus": unfound,
        "cells": len(after),
        "groups": int(after["group"].nunique()),
        "at_home": figures_against(before, after, read_dataset(options.data).classes),
        **elsewhere_against(base, own, plan.judged),
        "seed": plan.seed,
        "provenance": provenance(command),
    }
    write_json(options.out / "nucleus_framing.json", content)
    write_text(options.out / "nucleus_framing.md", page_of(content))


def frame_all(data: Path, out: Path, diameters: float, progress: Progress) -> dict[str, int]:
    """Write every cell of `data` cut out anew, under its own name; return how many stayed as they are."""
    done = out.with_suffix(".json")
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    cells = read_dataset(data).cells
    progress.start(f"Cutting out {data.name}", len(cells))
    unfound = 0
    for cell in cells:
        crop = framed(read_image(cell.path), diameters)
        unfound += crop is None
        target = out / cell.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if crop is None:
            shutil.copyfile(cell.path, target)
        else:
            found, encoded = cv2.imencode(
                target.suffix, cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 98]
            )
            assert found
            with written_atomically(target) as partial:
                partial.write_bytes(encoded.tobytes())
        progress.advance()
    progress.close()
    counts = {"cells": len(cells), "no_nucleus_found": unfound}
    write_json(done, counts)
    return counts


def framed(image: np.ndarray, diameters: float) -> np.ndarray | None:
    """Return the square round the nucleus of a crop, uint8 [S, S, 3]; None if no nucleus is found."""
    outlines = segment(image)
    if outlines is None:
        return None
    rows, columns = np.nonzero(outlines.nucleus)
    height, width = image.shape[:2]
    side = min(max(16, round(diameters * 2 * np.sqrt(len(rows) / np.pi))), height, width)
    top, left = (
        int(np.clip(round(places.mean() - side / 2), 0, length - side))
        for places, length in ((rows, height), (columns, width))
    )
    return image[top : top + side, left : left + side]


def page_of(content: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    home, there, origin = content["at_home"], content["elsewhere"], content["provenance"]
    rows = [
        f"| {title} | {interval_text(home['figures'][name], name)} | "
        f"{interval_text(home['differences'][name], name, signed=True)} |"
        for name, title in TITLES.items()
    ]
    rows += [
        f"| abnormal AUC on {content['foreign']}, {title} | "
        f"{interval_text(there['figures'][name], 'abnormal_auc')} | "
        f"{interval_text(there['differences'][name], 'abnormal_auc', signed=True)} |"
        for name, title in FIGURES.items()
    ]
    unfound = "; ".join(
        f"of {counts['cells']:,} cells of {name} {counts['no_nucleus_found']:,} showed no nucleus and stayed "
        "as they are"
        for name, counts in content["without_nucleus"].items()
    )
    return f"""# Cells cut out round their nuclei: {content["data"]}

{content["notice"]}

Each crop is cut down to a square about the middle of its nucleus, {content["diameters"]:g} diameters of \
a disc of the nucleus' area wide, but not beyond the crop; {unfound}. Trained as the ablation's base and \
judged on the same {content["cells"]:,} cells in {content["groups"]:,} groups.

| figure | framed | less the base |
| --- | --- | --- |
{chr(10).join(rows)}

In brackets: 95 % intervals from bootstrap draws of whole groups; of differences, the same draws for both. One
training an inner fold: the intervals hold the draw of the cells, not that of the training.

Command: `{origin["command"]}`; commit {origin["commit"]}; {origin["machine"]}; \
written {origin["written"][:10]}.
"""


if __name__ == "__main__":
    main()
