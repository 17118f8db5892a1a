"""Write docs/benchmarks.md from the files in benchmarks/results/, so that no figure is typed by hand.

python benchmarks/benchmarks_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cervicyte.pages import counted
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
COMMAND = "python benchmarks/benchmarks_page.py"
EXPORTS = ("onnx", "openvino", "torchscript", "wsinfer")
GPU_COMMAND = "python benchmarks/gpu_speed.py ../shared/data/sipakmed --out benchmarks/results/gpu_speed.json"
RAY_COMMAND = (
    "python benchmarks/ray_speed.py ../shared/data/sipakmed --price 0.02,0.05,0.10 "
    "--out benchmarks/results/ray_speed.json"
)
INT8_COMMAND = (
    "python benchmarks/int8_cost.py --calibration ../shared/data/sipakmed --images ../shared/data/herlev "
    "--out benchmarks/results/int8_cost.json"
)
INT8_LOSS_COMMAND = (
    "python benchmarks/precision_loss.py runs/folds/seed_0 --data ../shared/data/sipakmed --precision int8 "
    "--out benchmarks/results/precision_loss_int8.json"
)
ALL_COMMAND = (
    "python benchmarks/predict_all.py ../shared/data/sipakmed ../shared/data/herlev "
    "--out benchmarks/results/predict_all.json"
)


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def read_if_there(name: str) -> dict[str, Any] | None:
    return read(name) if (RESULTS / f"{name}.json").is_file() else None


def origin(content: dict[str, Any]) -> str:
    """Return where a file's figures come from: command, machine, commit and day."""
    provenance = content["provenance"]
    return (
        f"`{provenance['command']}` on {provenance['machine']}, commit `{provenance['commit']}`, "
        f"{provenance['written'][:10]}."
    )


def times(first: dict[str, Any], last: dict[str, Any], key: str) -> str:
    return f"{last[key] / first[key]:.1f} times"


def stage_lines(first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Return a row a stage: what it had to do, and how long that took, at two sizes."""
    lines = [
        f"| stage | steps of {first['cells']:,} cells | steps of {last['cells']:,} | processor time | "
        "processor time |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for before, after in zip(first["stages"], last["stages"], strict=True):
        steps = f"{before['steps']:,} | {after['steps']:,}"
        seconds = f"{before['processor_s']:,.0f} s | {after['processor_s']:,.0f} s"
        lines.append(f"| {after['stage']} | {steps} | {seconds} |")
    return [*lines, ""]


def inspection_lines(inspection: dict[str, Any], closer: dict[str, Any]) -> list[str]:
    bounds = closer["bounds"]
    with_network = closer["with_label_errors_and_shortcuts"]
    more = with_network["wall_s"] - closer["wall_s"]
    rows = [
        (f"{closer['cells']:,} cells of SIPaKMeD", closer, f"{bounds['cells_of_data_s']} s"),
        ("the same beside other work", inspection, f"{bounds['cells_of_data_s']} s"),
        ("the same, with label errors and shortcuts", with_network, ""),
        *((f"{one['cells']:,} cells made of them", one, "") for one in inspection["augmented"]),
    ]
    goal_of = {
        100_000: f"{bounds['100000_cells_s']:,} s, {bounds['100000_cells_peak_memory_mib']:,} MiB",
    }
    lines = [
        "## Inspection",
        "",
        "| data | wall time | processor time | peak memory | load when it began | goal |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, figures, goal in rows:
        lines.append(
            f"| {title} | {figures['wall_s']:,.0f} s | {figures['processor_s']:,.0f} s | "
            f"{figures['peak_memory_mib']:,} MiB | {figures['load_average_1_min'][0]:.1f} | "
            f"{goal or goal_of.get(figures['cells'], '') if figures is not with_network else ''} |"
        )
    lines += [
        "",
        f"Label errors and shortcuts, which use a network, add {more:,.0f} s on both cores; the goal is "
        f"{bounds['closer_look_s']} s. A load above the number of cores is other work on the same machine, "
        "which lengthens wall time.",
        "",
    ]
    made = inspection["augmented"]
    if len(made) > 1:
        first, last = made[0], made[-1]
        lines += [
            f"From {first['cells']:,} to {last['cells']:,} cells, {times(first, last, 'cells')} as many, "
            f"peak memory grows {times(first, last, 'peak_memory_mib')} and processor time "
            f"{times(first, last, 'processor_s')}. The made cells have more copies of each cell the more "
            f"there are, so twins grow {times(first, last, 'twin_pairs')}, and with them the pairs that are "
            "worth a look; what is tried between joined photographs is bounded for each photograph.",
            "",
            *stage_lines(first, last),
        ]
    how = inspection["how_augmented"]
    return [
        *lines,
        f"How they were made: {how[how.index('Copy k') :]}",
        "",
        origin(inspection),
        "",
        origin(closer),
        "",
    ]


def explanation_lines(content: dict[str, Any]) -> list[str]:
    goals = content["goals"]
    lines = [
        "## Explanation",
        "",
        f"{content['method']} at {content['layer']}, all {content['classes']} classes, "
        f"{content['size_pixels']} pixels, {content['precision']}, {content['threads']} thread, median of "
        f"{content['rounds']} rounds [fastest, slowest]. A forward pass is of the same network, "
        "engine, precision and batch.",
        "",
        "| images at once | in forward passes | pytorch-grad-cam, in forward passes | times as fast |",
        "| ---: | ---: | ---: | ---: |",
    ]
    keys = (
        "cervicyte_in_forward_passes",
        "pytorch_grad_cam_in_forward_passes",
        "times_as_fast_as_pytorch_grad_cam",
    )
    for batch in content["batches"]:
        figures = (batch[key] for key in keys)
        lines.append(
            f"| {batch['images']} | "
            + " | ".join(f"{one['median']:.2f} [{one['min']:.2f}, {one['max']:.2f}]" for one in figures)
            + " |"
        )
    lines += [
        "",
        f"Goals: at most {goals['cervicyte_in_forward_passes']} forward passes, at least "
        f"{goals['times_as_fast_as_pytorch_grad_cam']:.0f} times as fast.",
        "",
        origin(content),
        "",
    ]
    return lines


def training_lines(content: dict[str, Any]) -> list[str]:
    return [
        "## Training",
        "",
        f"The training loop, with reading and augmentation, reaches {content['share']:.1%} of the images a "
        f"second of one batch that lies in memory: {content['device']}, {content['image_size']} pixels, "
        f"batches of {content['batch_size']}, {content['threads']} threads.",
        "",
        origin(content),
        "",
    ]


def serving_lines(content: dict[str, Any]) -> list[str]:
    lines = [
        "## Serving",
        "",
        f"One server, {content['clients']} clients, each with an image of its own, against one client; "
        f"{content['threads'] or 'all'} threads; load of the machine when it began "
        f"{content['load_average_1_min']:.1f}.",
        "",
        "| asked for | clients | median time to answer | 95th percentile | requests a second |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for path in ("predict", "explain"):
        for clients, key in ((1, "one_at_a_time"), (content["clients"], "at_once")):
            one = content[path][key]
            lines.append(
                f"| {path} | {clients} | {one['p50_s']:.2f} s | {one['p95_s']:.2f} s | "
                f"{one['requests_per_s']:.1f} |"
            )
    starts, at_work = (
        ", ".join(f"{one:.1f}" for one in content[key])
        for key in ("seconds_to_ready", "processor_seconds_to_ready")
    )
    memory = content["memory_mib"]
    return [
        *lines,
        "",
        f"From the start of the process to ready: {starts} s, of which {at_work} s at work; goal: at "
        f"most {content['goal_seconds_to_ready']:.0f} s. Memory after the predictions "
        f"{memory['after_predictions']:,.0f} MiB, after all {memory['after_all']:,.0f} MiB. No answer under "
        f"load differs from the one that its image had alone by more than {largest_difference(content):.0e} "
        "of a probability.",
        "",
        origin(content),
        "",
    ]


INFERENCE_COLUMNS = (
    ("times_the_original", "times the original's way", "at least", "{:g}"),
    ("times_resizing_alone", "with resizing alone", "at least", "{:g}"),
    ("times_resizing_alone_at_our_size", "and at our size", "", ""),
    ("share_of_the_network_alone", "of the network alone", "at least", "{:.0%}"),
    ("share_of_the_processors_rate", "of the processor's rate", "at least", "{:.0%}"),
    ("forward_passes_with_maps", "five maps, in forward passes", "at most", "{:g}"),
)


def inference_lines(
    speeds: list[dict[str, Any]], memory: dict[str, Any], loss: dict[str, Any], gpu: dict[str, Any] | None
) -> list[str]:
    """Return the section on inference; `speeds` are of processors with bfloat16 and without."""
    growth = memory["growth_mib"]
    return [
        "## Inference",
        "",
        "From files to rows: cells are read, hashed, decoded, preprocessed and classified by `cervicyte "
        "predict`. The original's way is PyTorch, eager, float32, one image at a time at 224 pixels, after "
        "its resizing, denoising and CLAHE; with resizing alone on both sides, that step alone; at our size, "
        "at the pixels that ours takes, too. The network alone has a batch in memory; the processor's rate "
        "is that of the best square product of 1024 to 4096 in torch at the same precision. Five maps: one "
        "cell, warm, from bytes to class, probabilities and a map of each class, against a forward pass. "
        "Median of the rounds [lowest, highest], all in turns in one process.",
        "",
        *(line for speed in speeds for line in speed_lines(speed)),
        *gpu_lines(gpu),
        "### Precision and memory",
        "",
        f"What {loss['precision']} costs: of {loss['cells']:,} cells in groups that the networks of "
        f"{len(loss['folds'])} folds had not seen, {loss['accuracy']['float32']:.2%} are called rightly in "
        f"float32 and {loss['accuracy'][loss['precision']]:.2%} in {loss['precision']}, a loss of "
        f"{100 * loss['loss']:.2f} points; the bound is {100 * loss['bounds']['loss']:.1f}. "
        f"{loss['cells_with_another_class']} cells get another class. No uncalibrated probability moves by "
        f"more than {loss['largest_change_of_a_probability']:.3f} (99 in 100 by less than "
        f"{loss['change_of_a_probability_99th_percentile']:.3f}); the bound is "
        f"{loss['bounds']['change_of_a_probability']:g}.",
        "",
        f"Memory over {memory['rows']:,} rows, with a network of 32-pixel input: {growth:g} MiB more at most "
        f"from a tenth of the rows on; the bound is {memory['most_growth_mib']}.",
        "",
        "![Memory of the process over the rows written](results/inference_memory.png)",
        "",
        origin(loss),
        "",
        origin(memory),
        "",
    ]


def speed_lines(speed: dict[str, Any]) -> list[str]:
    """Return what was measured on one processor."""
    goals, cold, rates = speed["goals"], speed["cold_start_s"], speed["images_per_second"]
    has_bfloat16 = any(one["engine"]["precision"] == "bfloat16" for one in speed["engines"])
    about = f"{speed['processor']['name']}: " if "processor" in speed else ""
    lines = [
        f"### On a processor {'with' if has_bfloat16 else 'without'} bfloat16",
        "",
        f"{about}{speed['images']} cells of {speed['size_pixels']} pixels on {speed['threads']} threads, "
        f"batches of {speed['batch']}, {speed['rounds']} rounds.",
        "",
        "| engine | " + " | ".join(title for _, title, _, _ in INFERENCE_COLUMNS) + " |",
        "| --- |" + " ---: |" * len(INFERENCE_COLUMNS),
    ]
    for one in speed["engines"]:
        cells = []
        for key, _, _, form in INFERENCE_COLUMNS:
            form = "{:.0%}" if "%" in form else "{:.2f}"
            figure = one.get(key)
            cells.append(
                "{} [{}, {}]".format(*(form.format(figure[name]) for name in ("median", "min", "max")))
                if figure
                else ""
            )
        lines.append(f"| {engine_name(one['engine'])} | {' | '.join(cells)} |")
    asked = [f"{word} {form.format(goals[key])}" if word else "" for key, _, word, form in INFERENCE_COLUMNS]
    lines += [f"| goal | {' | '.join(asked)} |", ""]
    on_goals = " ".join(on_the_goals(one, goals) for one in fastest_of(speed["engines"]))
    lines += [
        f"{on_goals} These are the fastest; the processor's rate is a goal in bfloat16 alone; int8 is a file "
        "that `cervicyte export` writes only where it costs next to nothing, see [eight bits](#eight-bits).",
        "",
    ]
    lines += ["| images a second | of files | of the network alone |", "| --- | ---: | ---: |"]
    for one in speed["engines"]:
        name = f"{one['engine']['name']}_{one['engine']['precision']}"
        pair = " | ".join(f"{rates[f'{what}_{name}']['median']:.1f}" for what in ("files", "network"))
        lines.append(f"| {one['engine']['name']}, {one['engine']['precision']} | {pair} |")
    for key, title in (
        ("original", "the original's way"),
        ("resizing_alone", "the original's way, resizing alone"),
        ("resizing_alone_at_our_size", "the same at our size"),
    ):
        lines.append(f"| {title} | {rates[key]['median']:.1f} | |")
    in_parts = "".join(
        f" In parts of {' and '.join(one['times_whole_batches'])} images, {one['engine']['name']} in "
        f"{one['engine']['precision']} computes a batch "
        f"{' and '.join(format(found['median'], '.2f') for found in one['times_whole_batches'].values())} "
        "times as fast as whole."
        for one in speed["engines"]
        if "times_whole_batches" in one
    )
    processor = " and ".join(
        f"{found['median'] / 1e9:,.0f} GFLOP/s in {precision}"
        for precision, found in speed["processor_operations_per_second"].items()
    )
    beside = speed.get("without_the_network_ms")
    missing = speed.get("not_run", {})
    return [
        *lines,
        "",
        f"An image takes {speed['operations_per_image'] / 1e9:.2f} GFLOP, a multiplication and an addition "
        f"being two; the machine reaches {processor}.{in_parts}"
        + (
            f" All that stands beside the network takes {beside['median']:.2f} ms an image "
            f"[{beside['min']:.2f}, {beside['max']:.2f}] where its answers are at hand."
            if beside
            else " This was measured before libraries were kept to one thread beside the network, and not "
            "anew since."
        ),
        "",
        f"Cold, `cervicyte predict one.bmp` takes {cold['median']:.1f} s [{cold['min']:.1f}, "
        f"{cold['max']:.1f}] from shell to answer; the goal is {goals['cold_start_s']:g} s. When this began, "
        f"the load of the machine was {speed['load_average_1_min']}; above the number of cores it is other "
        "work, which lengthens times and spreads ratios.",
        "",
        *(line for name, why in missing.items() for line in (f"**Not run**: {name}. {why}", "")),
        origin(speed),
        "",
    ]


def fastest_of(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest, and before it, where that is in int8, the fastest of the others."""

    def rate(one: dict[str, Any]) -> float:
        return float(one["times_the_original"]["median"])

    plain = max((one for one in engines if one["engine"]["precision"] != "int8"), key=rate)
    fastest = max(engines, key=rate)
    return [plain] if fastest is plain else [plain, fastest]


def on_the_goals(one: dict[str, Any], goals: dict[str, float]) -> str:
    """Say which goals an engine misses; that of the processor's rate is for bfloat16."""
    precision = one["engine"]["precision"]
    missed = []
    for key, title, word, form in INFERENCE_COLUMNS:
        if key not in one or (key == "share_of_the_processors_rate" and precision != "bfloat16"):
            continue
        median = one[key]["median"]
        if (word == "at least" and median < goals[key]) or (word == "at most" and median > goals[key]):
            found = f"{median:.0%}" if "%" in form else f"{median:.2f}"
            missed.append(f"{title} {found}, where {word} {form.format(goals[key])} was the goal")
    said = f"**misses**: {'; '.join(missed)}" if missed else "reaches all goals"
    return f"{one['engine']['name']} in {precision} {said}."


def engine_name(engine: dict[str, Any]) -> str:
    return f"{engine['name']} {engine['version']}, {engine['precision']}"


def all_cells_lines(found: dict[str, Any] | None) -> list[str]:
    lines = ["## All cells at hand, as a user would", ""]
    if found is None:
        return [*lines, f"**Not run**: `{ALL_COMMAND}`.", ""]
    lines += [
        f"`{found['user_command']}` makes {found['rows']:,} rows in {found['seconds']:,.0f} s from shell to "
        f"table, {found['images_per_second']:.1f} images a second, with {engine_name(found['engine'])}; "
        f"threads {found['threads']}; "
        f"status {found['status']}; load of the machine when it began {found['load_average_1_min']}.",
        "",
    ]
    verdicts = ("answer", "uncertain", "unlike_training", "not_a_cell")
    lines += [
        f"| cells of | rows | {' | '.join(verdicts)} | errors |",
        "| --- | ---: |" + " ---: |" * (len(verdicts) + 1),
    ]
    for folder in found["folders"]:
        read = folder["rows"] - folder["errors"]
        shares = (f"{folder['verdicts'].get(verdict, 0) / max(1, read):.1%}" for verdict in verdicts)
        lines.append(
            f"| {folder['folder']} | {folder['rows']:,} | {' | '.join(shares)} | {folder['errors']} |"
        )
    return [
        *lines,
        "",
        "The model that ships was trained on the cells of SIPaKMeD, so that nothing of its accuracy can be "
        "read from them here; how good it is on cells that it has not seen stands in the "
        "[results](results/README.md). Herlev's cells are another laboratory's, see "
        "[other laboratories](elsewhere.md). "
        # Files without the rate are from before it was 5 %.
        f"`unlike_training` was then said of {found.get('unlike_rate', 0.02):.0%} of the training "
        "laboratory's cells, see [unlike training](unlike_training.md).",
        "",
        origin(found),
        "",
    ]


def scale_lines(found: dict[str, Any] | None) -> list[str]:
    lines = ["## Scale", ""]
    if found is None:
        return [*lines, f"**Not run**: `{RAY_COMMAND}`.", ""]
    rates, share, first = found["images_per_second"], found["share_of_one_process"], found["ray_first_rows_s"]
    rows, ray = found["rows"], found["ray"]
    lines += [
        f"{found['images']:,} cells, {engine_name(found['engine'])}, {found['cores']} processors, in turns; "
        f"median of {found['rounds']} rounds [lowest, highest]; load of the machine when this began "
        f"{found['load_average_1_min']}. Ray {ray['version']} on this one machine, workers with "
        f"{ray['threads_per_worker']} thread each, against one process with all threads.",
        "",
        "| | images a second, from the first rows on |",
        "| --- | ---: |",
    ]
    for key, title in (("here", "one process"), ("ray", "workers on Ray")):
        rate = rates[key]
        lines.append(f"| {title} | {rate['median']:.1f} [{rate['min']:.1f}, {rate['max']:.1f}] |")
    lines += [
        "",
        f"Ray's rate is {share['median']:.0%} [{share['min']:.0%}, {share['max']:.0%}] of one process'. "
        f"Its first rows come after {first['median']:.0f} s [{first['min']:.0f}, {first['max']:.0f}], as it "
        "begins and the workers load the model. With the numbers of threads that differ, "
        f"{rows['rows_that_differ']} rows differ in a digit, {rows['classes_that_differ']} in the class; no "
        f"probability by more than {rows['largest_difference_of_a_probability']:g}.",
        "",
        f"A million cells take {found['core_hours_of_a_million']:.1f} hours of a processor at Ray's rate. "
        "What they cost, if a processor costs so much an hour (assumed, in any currency; without storage, "
        "transfer and machines that wait):",
        "",
        "| a processor for an hour | a million cells |",
        "| ---: | ---: |",
    ]
    lines += [f"| {one['price']:.3f} | {one['cost']:.2f} |" for one in found["cost_of_a_million"]]
    return [
        *lines,
        "",
        "Several machines and GPUs under Ray: **not run**, since none was at hand; see "
        "[from a laptop to a cluster](scale.md).",
        "",
        origin(found),
        "",
    ]


def int8_lines(cost: dict[str, Any] | None, loss: dict[str, Any] | None) -> list[str]:
    """Return what int8 costs and brings, or which command would say so."""
    lines = ["### Eight bits", ""]
    if cost is None:
        lines += [f"What int8 costs the shipped model: **not run**: `{INT8_COMMAND}`.", ""]
    else:
        compared = next(iter(cost["engines"].values()))["images"]
        lines += [
            f"The shipped model in int8, calibrated on {cost['calibrating_images']} cells of SIPaKMeD and "
            f"compared with float32 on {compared} cells of Herlev, which did not train it. Their classes are "
            "others, so that the share of cells with another class stands for the loss of accuracy, which "
            f"cannot be larger. Network alone, threads: {cost['threads']}, in turns in one process; the load "
            f"when this began was {cost['load_average_1_min']}; above the number of cores it is other work, "
            "which spreads ratios.",
            "",
            "| engine | cells with another class | largest change of a probability | 99 in 100 less than "
            "| times float32 [lowest, highest] |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, one in cost["engines"].items():
            ratio = one["times_float32"]
            lines.append(
                f"| {name.replace('_', ', ')} | {one['another_class']:.2%} | "
                f"{one['largest_change_of_a_probability']:.3f} | "
                f"{one['change_of_a_probability_99th_percentile']:.3f} | "
                f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] |"
            )
        bounds = next(iter(cost["engines"].values()))["bounds"]
        lines += [
            f"| bound | {bounds['loss']:.1%} | {bounds['change_of_a_probability']:g} | | |",
            "",
            "`cervicyte export --precision int8` refuses what is beyond a bound. For bfloat16 the loss "
            "itself was measured, above.",
            "",
            origin(cost),
            "",
        ]
    if loss is None:
        lines += [f"Its loss on held-out groups: **not run**: `{INT8_LOSS_COMMAND}`.", ""]
    else:
        low, high = (100 * end for end in loss["loss_interval"])
        lines += [
            f"Its loss on cells of SIPaKMeD: of {loss['cells']:,} in groups that the networks of "
            f"{counted(len(loss['folds']), 'fold')}{trained_so(loss)} had not seen, "
            f"{loss['accuracy']['float32']:.2%} are called rightly in float32 and "
            f"{loss['accuracy']['int8']:.2%} in int8, a loss of "
            f"{100 * loss['loss']:.2f} points [{low:.2f}, {high:.2f}]; "
            f"the bound is {100 * loss['bounds']['loss']:.1f}. {loss['cells_with_another_class']} cells get "
            "another class. No uncalibrated probability moves by more than "
            f"{loss['largest_change_of_a_probability']:.3f} (99 in 100 by less than "
            f"{loss['change_of_a_probability_99th_percentile']:.3f}); the bound is "
            f"{loss['bounds']['change_of_a_probability']:g}.",
            "",
            origin(loss),
            "",
        ]
    return lines


def trained_so(loss: dict[str, Any]) -> str:
    """Return how networks were trained that are not of the recipe that ships."""
    fold = loss["folds"][0]
    return f", of {fold['image_size']} pixels and {fold['epochs']} epochs," if "epochs" in fold else ""


def gpu_lines(found: dict[str, Any] | None) -> list[str]:
    """Return what a GPU does, or that none was at hand."""
    if not found:
        return [
            "### On a GPU",
            "",
            "Batches of 256 with maps and without: **not run**, since no GPU was at hand; the goal "
            "is at least 80% of the same network on a batch that lies on the GPU. Where there is one, "
            f"`{GPU_COMMAND}` measures it.",
            "",
        ]
    lines = [
        "### On a GPU",
        "",
        f"{found['device']}: batches of {found['batch']} preprocessed cells of "
        f"{found['size_pixels']} pixels go from this machine's memory to the answers, against the same "
        f"network on a batch that lies on the GPU. Median of {found['rounds']} rounds [lowest, highest].",
        "",
        "| engine | images a second, resident | without maps | of the resident batch's | with maps | of it |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found["precisions"]:
        rates = one["images_per_second"]
        cells = [f"{rates['resident']['median']:,.0f}"]
        for name in ("without_maps", "with_maps"):
            share = one[f"share_{name}"]
            cells.append(f"{rates[name]['median']:,.0f}")
            cells.append(f"{share['median']:.0%} [{share['min']:.0%}, {share['max']:.0%}]")
        engine = one["engine"]
        lines.append(f"| {engine['name']} {engine['version']}, {engine['precision']} | {' | '.join(cells)} |")
    goal = found["goals"]["share_of_a_resident_batch"]
    load = found.get("load_average_1_min", "not written down, as other work went on on its processors")
    missed = [
        f"{one['engine']['precision']} {ending.replace('_', ' ')}"
        for one in found["precisions"]
        for ending in ("without_maps", "with_maps")
        if one[f"share_{ending}"]["median"] < goal
    ]
    reached = f"**missed** in {' and '.join(missed)}" if missed else "reached"
    said = f"The goal is at least {goal:.0%}: {reached}. The load of the machine when it ended: {load}."
    if any("images_at_once" not in one for one in found["precisions"]):
        said += (
            " This was measured before batches went to the GPU through pinned memory and in parts, one of "
            "which is made ready while another is computed, and not anew since."
        )
    return [*lines, "", said, "", origin(found), ""]


def parity_lines() -> list[str]:
    """Return what the exports of the shipped model differ by from the network in torch, on real cells."""
    reports = [found for one in EXPORTS if (found := read_if_there(f"parity_{one}"))]
    if not reports:
        return []
    lines = [
        "## Exports",
        "",
        f"The shipped model in each format against the network in torch, on {reports[0]['images_found']} "
        "cells of SIPaKMeD as its archive has them: the largest differences. A format whose classes differ "
        "on any image, or that is beyond a bound, is not written.",
        "",
        "| format | engine | classes agree | logits | probabilities | of the maps | bound |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in reports:
        parity, engine = one["parity"], one["engine"]
        maps = "no maps" if parity["evidence"] is None else f"{parity['evidence']:.1e}"
        lines.append(
            f"| {one['format']} | {engine['name']} {engine['version']} | {parity['label_agreement']:.0%} | "
            f"{parity['logits']:.1e} | {parity['probabilities']:.1e} | {maps} | "
            f"{parity['bounds']['logits']:g} |"
        )
    lines += [
        "",
        "What SIPaKMeD's pixels measure is not published: the spacing that `wsinfer` was given stands for "
        "yours, and moves no figure here.",
        "",
    ]
    return [*lines, *(line for one in reports for line in (origin({"provenance": one}), ""))]


def largest_difference(content: dict[str, Any]) -> float:
    return max(content[path]["largest_difference_of_a_probability"] for path in ("predict", "explain"))


def page() -> str:
    """Return the whole page as Markdown."""
    lines = [
        "# Benchmarks",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        f"Written by `{COMMAND}` from the files in `benchmarks/results/`, which `make benchmark` writes; no "
        "figure here was typed. Times depend on the machine; ratios within one run less so.",
        "",
        *inspection_lines(read("inspection_speed"), read("inspection_closer_speed")),
        *explanation_lines(read("explanation_speed")),
        *inference_lines(
            [
                found
                for precision in ("bfloat16", "float32")
                if (found := read_if_there(f"inference_speed_{precision}")) is not None
            ],
            read("inference_memory"),
            read("precision_loss"),
            read_if_there("gpu_speed"),
        ),
        *int8_lines(read_if_there("int8_cost"), read_if_there("precision_loss_int8")),
        *parity_lines(),
        *all_cells_lines(read_if_there("predict_all")),
        *scale_lines(read_if_there("ray_speed")),
        *training_lines(read("training_speed")),
        *serving_lines(read("serving_load")),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    write_text(PROJECT / "docs" / "benchmarks.md", page())
