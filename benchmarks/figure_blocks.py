"""The blocks of figures that README.md and docs/ may have: each a function from records to Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import fmean
from typing import Any

from figure_parts import (
    COMMANDS,
    NOTHING,
    MissingRecordError,
    Records,
    interval,
    script,
    seconds,
    source,
    table,
    times,
    words,
)  # fmt: skip

from affectgpt.core.errors import DataError

TITLES = {"mer2023": "MER2023", "cmumosi": "CMU-MOSI", "sims": "SIMS", "ovmerdplus": "OV-MERD"}
ARMS = {"wheel": "wheel", "random": "random rewards", "shuffled": "truth of other clips", "recall": "recall alone"}


BLOCKS: dict[str, Callable[[Records], str]] = {}


def block(make: Callable[[Records], str]) -> Callable[[Records], str]:
    """Register a block under the name of its function."""
    BLOCKS[make.__name__] = make
    return make


@block
def demo_seeds(records: Records) -> str:
    """What the demo learns, by seed."""
    rows = records.numbers("demo_seeds")["seeds"]
    keys = ("hit", "no_prefusion", "text_only", "shuffled_faces", "shuffled_sounds", "chance")
    head = ("seed", "HIT", "without pre-fusion", "text only", "faces shuffled", "sounds shuffled", "chance")

    def cells(title: str, found: Mapping[str, float]) -> list[str]:
        return [title, *(f"{100 * found[key]:.1f}" for key in keys), f"{found['labels']:.2f}"]

    body = [cells(str(row["seed"]), row) for row in rows]
    if len(rows) > 1:
        body.append(cells("mean", {key: fmean(row[key] for row in rows) for key in (*keys, "labels")}))
    return f"{table([*head, 'labels per answer'], body)}\n\n{source(records, 'demo_seeds')}"


@block
def scores(records: Records) -> str:
    """The released answers: as published, without a choice on the test set, by votes, by chance."""
    numbers = records.numbers("released_answers")
    sets, together = numbers["datasets"], numbers["together"]
    best_single = together["best_single"]["checkpoint"]
    first, of = words(len(together["datasets"])), words(len(next(iter(sets.values()))["single_percent"]))
    head = [f"{TITLES[name]} ({found['clips']} clips)" for name, found in sets.items()]

    def row(title: str, cell: Callable[[Mapping[str, Any]], str], mean: str = NOTHING) -> list[str]:
        return [title, *(cell(found) for found in sets.values()), mean]

    def value(found: Mapping[str, Any]) -> str:
        return f"{found['percent']:.2f}{interval(found['interval_percent'])}"

    def gain(found: Mapping[str, Any]) -> str:
        won = found["votes_minus_mean"]
        p = f"{won['p']:.3f}" if won["p"] >= 0.001 else f"{won['p']:.4f}"
        return f"{won['points']:+.1f}{interval(won['interval_points'])}; {p}"

    def groups(found: Mapping[str, Any]) -> str:
        single, votes = found["groups_per_answer"]["single"], found["groups_per_answer"]["votes"]
        return NOTHING if single is None else f"{single:.2f}, {votes:.2f}"

    def constant(found: Mapping[str, Any]) -> str:
        text = f"{found['floor_constant_percent']:.1f}"
        return f"**{text}**" if found["floor_constant_percent"] > found["best"]["percent"] else text

    votes = f"**{votes_mean(numbers):.2f}**"
    body = [
        row(f"best of {of} on the test set (as published)",
            lambda f: f"{f['best']['percent']:.2f} ({epoch(f['best']['checkpoint'])})",
            f"{together['best_mean_percent']:.2f}"),
        row(f"best single checkpoint of the first {first} ({epoch(best_single)})",
            lambda f: f"{f['single_percent'][best_single]:.2f}", f"{together['best_single']['mean_percent']:.2f}"),
        row("checkpoint chosen on a half, scored on the other", lambda f: value(f["chosen_on_a_half"]),
            value(together["chosen_on_a_half"])),
        row(f"mean of the {of}", lambda f: value(f["mean"]), value(together["mean"])),
        row(f"**votes of the {of}**", lambda f: "**{:.2f}**{}".format(
            f["votes"]["percent"], interval(f["votes"]["interval_percent"])), votes),
        row("votes minus mean; p", gain),
        row("known groups per answer: singles, votes", groups),
        row("chance level: answers permuted among clips", lambda f: f"{f['floor_dealt_percent']:.1f}"),
        row("chance level: one answer for all clips", constant),
    ]  # fmt: skip
    line = source(records, "released_answers")
    return f"{table(['', *head, f'mean of the first {first}'], body)}\n\n{line}"


def votes_mean(numbers: Mapping[str, Any]) -> float:
    """Of the sets that are averaged, the mean score of the votes."""
    return fmean(numbers["datasets"][name]["votes"]["percent"] for name in numbers["together"]["datasets"])


def epoch(checkpoint: str) -> str:
    """``epoch 50`` of a published checkpoint's name."""
    return f"epoch {int(checkpoint.split('_')[1])}"


@block
def scores_votes(records: Records) -> str:
    """Votes by how many are needed: more groups raise HIT whatever they are."""
    sets = {name: f for name, f in records.numbers("released_answers")["datasets"].items() if f["votes_by_needed"]}
    head = ["votes needed"]
    for name, found in sets.items():
        head += [f"{TITLES[name]}, {METRICS[found['metric']]}", "known groups per answer"]
    rows = []
    for at in range(len(next(iter(sets.values()))["votes_by_needed"])):
        row = [str(at + 1)]
        for found in sets.values():
            value = found["votes_by_needed"][at]
            chosen = value["groups_per_answer"] == found["groups_per_answer"]["votes"]
            row += [f"{value['percent']:.1f}{' (chosen)' if chosen else ''}", f"{value['groups_per_answer']:.1f}"]
        rows.append(row)
    singles = ["one checkpoint, mean"]
    for found in sets.values():
        singles += [f"{found['mean']['percent']:.1f}", f"{found['groups_per_answer']['single']:.1f}"]
    lines = []
    for name, found in sets.items():
        if found["mean_of_others"]:
            votes, mean = found["votes"], found["mean_of_others"]
            lines.append(
                f"On {TITLES[name]} the votes have precision {votes['precision_percent']:.1f} and recall "
                f"{votes['recall_percent']:.1f}, single checkpoints on the mean {mean['precision_percent']:.1f} and "
                f"{mean['recall_percent']:.1f}."
            )
        best = found["votes_minus_best"]
        lines.append(
            f"Against the best single checkpoint, chosen on these clips of {TITLES[name]}, the votes gain "
            f"{best['points']:+.1f}{interval(best['interval_points'])} points (p = {best['p']:.2g})."
        )
    line = source(records, "released_answers")
    return f"{table(head, [*rows, singles])}\n\n{' '.join(lines)}\n\n{line}"


METRICS = {"hit": "HIT", "waf": "WAF", "f": "F_s"}


def ratios(*found: Mapping[str, float], text: str = "{} times as fast", key: str = "wall_ratio") -> list[str]:
    """Measured, and the same ratios by processor time."""
    return [text.format(*(times(f[key]) for f in found)), ", ".join(times(f["processor_ratio"]) for f in found)]


def training_row(records: Records) -> list[str]:
    """Of the table of speeds."""
    ways = records.numbers("training")["ways"]
    what = (
        "a training step against the published way (encoders inside, backward through the speech encoder, padded "
        "batches)"
    )
    found = ratios(ways["ours, encoders in the step"], ways["ours, feature store"],
                   text="{} times as fast, with stored features {} times")  # fmt: skip
    return [what, *found, script("training")]


def inference_rows(records: Records) -> list[list[str]]:
    """Of the table of speeds: one checkpoint, several."""
    found, clips = records.numbers("inference"), records["inference"]["settings"]["clips"]
    tokens, command = found["tokens"], script("inference")
    text = (f"both questions, encoded once for both, {{}} times as fast; a description ({tokens['description']} "
            f"tokens) {{}}, labels ({tokens['labels']} tokens) {{}}")  # fmt: skip
    one = ratios(found["both_questions"], found["description"], found["labels"], text=text)
    several = ratios(found["labels_of_all_checkpoints"])
    return [[f"answering {clips} clips in batches against one by one, encoders each time", *one, command],
            [f"the same for {words(found['checkpoints'])} checkpoints, labels", *several, command]]  # fmt: skip


def data_rows(records: Records) -> list[list[str]]:
    """Of the table of speeds: reading."""
    data, command = records.numbers("data"), script("data")
    rows = {
        "8 of a clip's 300 faces, against loading and resizing all": ratios(data["faces"], key="ratio"),
        "a training sample from the feature store against decoding": ratios(data["store"], key="ratio"),
        "two loading processes against none": [f"{times(data['loader']['ratio'])} times as fast", NOTHING],
        f"{data['table']['rows']:,} rows of a data set": [f"ready in {seconds(data['table']['seconds'])}",
                                                          seconds(data["table"]["processor_seconds"])],
    }  # fmt: skip
    return [[what, *found, command] for what, found in rows.items()]


def scoring_row(records: Records) -> list[str]:
    """Of the table of speeds."""
    found = records.numbers("scoring")
    quick, whole = (found[k]["wall_seconds"] for k in ("scoring_without_intervals_and_floors", "scoring"))
    return [f"scores of {words(found['checkpoints'])} checkpoints on {words(found['datasets'])} data sets",
            f"{quick:.2f} s, {times(found['wall_ratio'])} times as fast as a straightforward implementation; "
            f"{whole:.2f} s with intervals and chance levels", NOTHING, script("scoring")]  # fmt: skip


def classifiers_row(records: Records) -> list[str]:
    """Of the table of speeds."""
    found = records.numbers("captioning")["epoch"]
    return [f"an epoch of {words(found['classifiers'])} classifiers on {found['clips']:,} clips",
            seconds(found["wall_seconds"]), seconds(found["processor_seconds"]), script("captioning")]  # fmt: skip


@block
def speed(records: Records) -> str:
    """Ratios of two ways in one process; a GPU's where it was measured."""
    body = [training_row(records), *inference_rows(records), *data_rows(records), scoring_row(records),
            classifiers_row(records)]  # fmt: skip
    names = ["training", "inference", "data", "scoring", "captioning"]
    if (gpu := records.get("training_gpu")) is not None:
        names.append("training_gpu")
        for name, way in gpu["numbers"]["ways"].items():
            ratio = f", {times(way['wall_ratio'])} times as fast as the published way" if "wall_ratio" in way else ""
            body.append([f"a training step at real size on a GPU: {name}",
                         f"{way['samples_per_second']:.1f} samples/s, {way['memory_gb']:.1f} GB{ratio}", NOTHING,
                         "`benchmarks/training.py --size real`"])  # fmt: skip
    if (gpu := records.get("inference_throughput_gpu")) is not None:
        names.append("inference_throughput_gpu")
        found = gpu["numbers"]
        body.append([f"answering at real size on a GPU, {found['engine']}, batches of {found['batch']}",
                     f"{found['answers_per_second']:.1f} answers/s, {found['tokens_per_second']:.0f} tokens/s", NOTHING,
                     "`benchmarks/inference.py --size real`"])  # fmt: skip
    return f"{table(['what', 'measured', 'by processor time', 'script'], body)}\n\n{source(records, *names)}"


@block
def memory(records: Records) -> str:
    """Memory that a process holds at most."""
    peaks, data = records.numbers("inference_memory")["peaks"], records.numbers("data")
    scoring, epoch_ = records.numbers("scoring"), records.numbers("captioning")["epoch"]
    checkpoints, sets, classifiers = map(words, (scoring["checkpoints"], scoring["datasets"], epoch_["classifiers"]))
    counts = " and ".join(f"{found['clips']:,}" for found in peaks)
    body = [
        [f"answering {counts} clips, tiny models", " and ".join(f"{found['peak_mb']:,}" for found in peaks) + " MB",
         script("inference_memory")],
        [f"{data['table']['rows']:,} rows of a data set", f"{data['table']['memory_mb']:.0f} MB", script("data")],
        ["8 of a clip's 300 faces", f"{data['faces']['memory_mb']:.1f} MB", script("data")],
        ["growth of the lowest memory from epochs 1-4 of loading to epochs 5-8",
         f"{data['growth']['epochs_growth_mb']:.1f} MB", script("data")],
        [f"growth of a decoder over {data['growth']['opened']:,} videos",
         f"{data['growth']['decoder_growth_mb']:.1f} MB", script("data")],
        [f"scores of {checkpoints} checkpoints on {sets} data sets with intervals and chance levels",
         f"{scoring['scoring']['peak_mb']:.0f} MB", script("scoring")],
        [f"training {classifiers} classifiers on {epoch_['clips']:,} clips", f"{epoch_['peak_gb']:.1f} GB",
         script("captioning")],
    ]  # fmt: skip
    line = source(records, "inference_memory", "data", "scoring", "captioning", timed=False)
    return f"{table(['what', 'at most', 'script'], body)}\n\n{line}"


@block
def real_size(records: Records) -> str:
    """The rehearsal with random weights of the published sizes."""
    parts = []
    for name in ("real_size", "real_size_gpu"):
        record = records["real_size"] if name == "real_size" else records.get(name)
        if record is None:
            continue
        found = record["numbers"]
        where = "in the GPU's memory" if "gpu" in record["machine"] else f"bfloat16, {found['threads']} threads"
        title = (
            f"Qwen2.5-7B ({found['layers']} of {found['of_layers']} layers) with both encoders, random weights, "
            f"batch {found['batch']}, {where}, {found['free_gb']:.1f} GB free ({script('real_size')}):"
        )
        rows = [row for stage, values in found["stages"].items() if (row := _stage(stage, values, found)) is not None]
        parts += [title, table(["stage", "measured", "memory at most"], rows), source(records, name)]
    return "\n\n".join(parts)


def _stage(stage: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> list[str] | None:
    peak = f"{values['peak_gb']:.1f} GB" if "peak_gb" in values else NOTHING
    if stage == "make weights":
        return [stage, f"{seconds(values['seconds'])}, {values['gb']:.1f} GB", NOTHING] if values["gb"] else None
    if "step_s" in values:
        read = f", reading {seconds(values['read_s'])}" if values["read_s"] else ""
        return [stage, f"{seconds(values['seconds'])} in all: building {seconds(values['build_s'])}{read}, "
                f"{values['steps']} steps of {seconds(values['step_s'])} ({values['samples_per_s']:.2g} samples/s, "
                f"utilisation {100 * values['mfu']:.0f} %), saving {seconds(values['save_s'])}",
                f"{peak} ({values['estimated_gb']:.1f} GB estimated before)"]  # fmt: skip
    if "answer_s" in values:
        return [stage, f"{seconds(values['seconds'])} in all: building {seconds(values['build_s'])}, one answer of "
                f"{found['new_tokens']} tokens {seconds(values['answer_s'])}", peak]  # fmt: skip
    if "answers" in values:
        return [stage, f"{values['answers']} answers, {values['answers_per_s']:.2g} per second", peak]
    return None  # a profile is no row


@block
def captioning(records: Records) -> str:
    """Two sentences on the planted faults."""
    found = records.numbers("captioning_demo")
    if not found["hit_ratios"]:
        raise DataError(f"the record of captioning_demo has no training: run `{COMMANDS['captioning_demo']}`")
    planted = {key: f"{100 * value:.0f} %" for key, value in found["planted_ratios"].items()}
    rates, hits = found["ratios"]["E+S"], found["hit_ratios"]
    command, line = script("captioning_demo"), source(records, "captioning_demo")
    return (
        f"With faults planted into the synthetic corpus ({planted['wrong']} wrong descriptions, {planted['voice']} "
        f"another's voice, {planted['short']} over-short texts; thresholds fixed on fault seed {found['tuned_on']}, "
        f"mean of {words(len(found['reported_seeds']))} others) the high-level filter (E+S) keeps "
        f"{100 * rates['crowd right kept']:.1f} % of the right and drops {100 * rates['crowd recall']:.1f} % of the "
        f"wrong descriptions that reach it. The tiny model trained on what all filters keep has "
        f"{100 * hits['E+S']:.1f} % HIT on held-out persons, trained on all clips {100 * hits['none']:.1f} % "
        f"({command}).\n\n{line}"
    )


@block
def rl(records: Records) -> str:
    """What rewards teach, by arm and seed."""
    head = ["rewards", "seed", "F_s before", "after", "gain [95 % interval]", "gain, other faces",
            "gain, other voices", "labels per answer: before, after"]  # fmt: skip
    body = []
    for row in records.numbers("grpo_demo")["rows"]:
        start = [ARMS[row["arm"]], str(row["seed"]), f"{row['before']:.1f}"]
        if "gain" in row:
            body.append([*start, f"{row['after']:.1f}", f"{row['gain']:+.1f} [{row['low']:.1f}, {row['high']:.1f}]",
                         f"{row['gain_faces']:+.1f}", f"{row['gain_voices']:+.1f}",
                         f"{row['labels_before']:.2f}, {row['labels']:.2f}"])  # fmt: skip
        else:
            body.append([*start, "stopped by the guard", *[NOTHING] * 3, f"{row['labels_before']:.2f}, {NOTHING}"])
    return f"{table(head, body)}\n\n{rl_summary(records)}\n\n{source(records, 'grpo_demo')}"


def rl_summary(records: Records) -> str:
    """Gains of every arm in a sentence."""
    rows, parts = records.numbers("grpo_demo")["rows"], []
    for arm, title in ARMS.items():
        gains = [row["gain"] for row in rows if row["arm"] == arm and "gain" in row]
        stopped = sum(1 for row in rows if row["arm"] == arm and "gain" not in row)
        if gains:
            seeds = f"{len(gains)} seed{'s' * (len(gains) > 1)}"
            parts.append(f"{title} {min(gains):+.1f} to {max(gains):+.1f} ({seeds})" if len(gains) > 1
                         else f"{title} {gains[0]:+.1f} ({seeds})")  # fmt: skip
        if stopped:
            parts.append(f"{title} stopped by the guard ({stopped} of {stopped + len(gains)} seeds)")
    return f"Points of F_s gained on held-out drawn clips: {'; '.join(parts)}."


@block
def rl_cost(records: Records) -> str:
    """A step of reinforcement learning, stage by stage."""
    record = records["grpo"]
    found, settings = record["numbers"], record["settings"]
    predicted, gpu = found.get("predicted_seconds"), records.get("grpo_gpu")
    columns = {f"{record['model']} models, measured": found["wall_seconds"]}
    if predicted is not None:
        columns["Qwen2.5-7B on this machine, predicted"] = predicted
    if gpu is not None:
        columns[f"{gpu['model']} size on a GPU, measured"] = gpu["numbers"]["wall_seconds"]
    wholes = {title: sum(stages.values()) for title, stages in columns.items()}
    body = [
        [stage, *(f"{seconds(stages[stage])} ({100 * stages[stage] / wholes[title]:.2f} %)"
                  for title, stages in columns.items())]
        for stage in found["wall_seconds"]
    ]  # fmt: skip
    body.append(["step", *(seconds(whole) for whole in wholes.values())])
    what = f"{settings['clips']} clips x {settings['group']} answers of {settings['tokens']} tokens"
    line, command = source(records, "grpo", "grpo_gpu"), script("grpo")
    return f"{table([f'{what} ({command})', *columns], body)}\n\n{line}"


@block
def serving(records: Records) -> str:
    """The server with several clients against one request after the other."""
    found = records.numbers("serve")
    body = []
    for question in ("labels", "description"):
        one = found[question]
        body.append([
            f"{question} ({found['tokens'][question]} tokens)", seconds(one["wall_seconds"]["one_by_one"]),
            seconds(one["wall_seconds"]["together"]), f"{times(one['wall_ratio'])} times as fast",
            times(one["processor_ratio"]), f"{one['equal_answers']} of {found['requests']}",
        ])  # fmt: skip
    head = [f"{found['requests']} requests, {records['serve']['model']} models", "one by one",
            f"{found['clients']} clients together", "ratio", "by processor time", "equal answers"]  # fmt: skip
    return f"{table(head, body)}\n\n{source(records, 'serve')}"


@block
def headline(records: Records) -> str:
    """The most important rows, for README.md; those of which there is no record are left out."""

    def published() -> list[list[str]]:
        found = records.numbers("released_answers")
        together = found["together"]
        names = [TITLES[name] for name in together["datasets"]]
        command = script("released_answers")
        return [
            [f"the released answers scored again on {', '.join(names)}: mean of the published scores (best of seven "
             "checkpoints for each set)", f"{together['best_mean_percent']:.2f}", command],
            ["the same without a choice on the test set: mean of the seven; their votes",
             f"{together['mean']['percent']:.2f}{interval(together['mean']['interval_percent'])}; "
             f"{votes_mean(found):.2f}", command],
        ]  # fmt: skip

    def demo() -> list[list[str]]:
        seeds = records.numbers("demo_seeds")["seeds"]
        hit, text, chance = (f"{100 * fmean(row[key] for row in seeds):.0f}" for key in ("hit", "text_only", "chance"))
        what = (
            f"the demo on held-out drawn clips, mean of {len(seeds)} seeds: HIT in percent; from text alone; by chance"
        )
        return [[what, f"{hit}; {text}; {chance}", script("demo_seeds")]]

    def rewards() -> list[list[str]]:
        summary = rl_summary(records).split(": ", 1)[1].rstrip(".")
        what = "points of F_s that rewards gain on held-out drawn clips (wrong labels planted; settings made on seed 0)"
        return [[what, summary, script("grpo_demo")]]

    def row_of(row: list[str]) -> list[list[str]]:
        return [[f"{row[0]} \\*", row[1], row[3]]]

    body: list[list[str]] = []
    training, inference = lambda: row_of(training_row(records)), lambda: row_of(inference_rows(records)[0])
    for make in (published, training, inference, demo, rewards):
        with suppress(MissingRecordError):
            body += make()
    line = source(records, "released_answers", "training", "inference", "demo_seeds", "grpo_demo")
    if (record := records.get("training")) is not None:
        millions = round(record["numbers"]["llm_parameters"] / 1e6)
        line = (
            f"\\* {record['model']} models with random weights (LLM of {millions} million parameters) on a CPU: ratios "
            f"at 7B are others, since there the LLM takes a larger share.\n\n{line}"
        )
    return f"{table(['what', 'measured', 'script'], body)}\n\n{line}"
