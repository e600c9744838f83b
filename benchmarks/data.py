"""Speed and memory of reading data, as ratios measured in one run: ``python benchmarks/data.py``.

Ratios carry from machine to machine; milliseconds do not. Every measurement runs in a process of its own, so that its
memory is its own. Processor time (of this process and those below it) is measured beside wall time: others that use the
machine do not change it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import Run, add_out_argument

N_ROWS = 132_171  # videos of MER2025


def resident_mb() -> float:
    """Memory of this process that lies in RAM, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Highest memory of this process so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def processor_seconds(pid: int | str = "self") -> float:
    """Processor time so far of a process and of all living ones below it, in steps of 10 ms."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with those below it that have ended
    return own + sum(processor_seconds(child) for child in children)


def milliseconds(work: Callable[[], object], *, repeats: int) -> tuple[float, float]:
    """Wall time (median) and processor time (mean) of a call, after one that warms caches."""
    work()
    times, before = [], processor_seconds()
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000, (processor_seconds() - before) / repeats * 1000


def faces(folder: Path) -> dict:
    """Eight crops by memory map against loading and resizing all 300."""
    import cv2
    import numpy as np

    from affectgpt.media.video import read_faces, uniform_indices

    cv2.setNumThreads(0)
    path = folder / "faces.npy"
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(300, 256, 256, 3))
    rng = np.random.default_rng(0)
    for frame in mapped:
        frame[:] = rng.integers(0, 256, frame.shape, dtype=np.uint8)
    del mapped

    def load_all():
        every = [cv2.resize(frame, (224, 224)) for frame in np.load(path)]
        return np.stack([every[i] for i in uniform_indices(len(every))])

    read_faces(path)
    before = peak_mb()
    ours, ours_processor = milliseconds(lambda: read_faces(path), repeats=1000)
    memory = peak_mb() - before
    assert (read_faces(path) == load_all()).all()
    theirs, theirs_processor = milliseconds(load_all, repeats=20)
    return {
        "ratio": theirs / ours, "processor_ratio": theirs_processor / ours_processor,
        "ours_ms": ours, "all_ms": theirs, "memory_mb": memory,
    }  # fmt: skip


def table(folder: Path) -> dict:
    """A training table of 132,171 rows: names, labels, descriptions, subtitles, media paths."""
    import csv
    import dataclasses

    from affectgpt.datasets.label_files import load_samples
    from affectgpt.datasets.table import get_row

    row = dataclasses.replace(get_row("MERCaptionPlus"), root="table")
    root = folder / "table"
    if not root.is_dir():
        root.mkdir()
        description = "She smiles, her voice is bright; we infer that she is glad. " * 6
        columns = {
            row.openset_file: ("openset", lambda i: f"['{'happy' if i % 2 else 'sad'}', 'calm', 'word {i % 900}']"),
            row.reason_file: ("reason", lambda i: f"{description}{i}"),
            row.subtitle_file: ("english", lambda i: f"I am so happy to see you again, after all these {i} years!"),
        }
        names = [f"sample_{i:08d}" for i in range(N_ROWS)]
        for file, (column, text) in columns.items():
            with (root / file).open("w", newline="", encoding="utf-8") as handle:
                csv.writer(handle).writerows([("name", column), *((name, text(i)) for i, name in enumerate(names))])
        for media_dir, suffix in ((row.video_dir, ".mp4"), (row.audio_dir, ".wav")):
            (root / media_dir).mkdir()
            for name in names[::20]:  # creating them all takes longer than anything measured here
                (root / media_dir / (name + suffix)).touch()
    before = resident_mb()
    started, processor = time.perf_counter(), time.process_time()
    samples = load_samples(row, split="train", dataset_root=folder)
    return {
        "rows": len(samples),
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "memory_mb": peak_mb() - before,
    }


class _Characters:
    """Stands in for a tokenizer: text is not what is measured."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 2
    bos_token, eos_token, pad_token = "<s>", "</s>", "</s>"

    def __call__(self, text, **_):
        import types

        return types.SimpleNamespace(input_ids=[ord(c) % 900 + 3 for c in text])

    def convert_tokens_to_ids(self, token):
        return 1000


def _tokenizer():
    """Any tokenizer of transformers, which a processor is made with."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", pad_token="</s>")


class _ToTensor:
    def __call__(self, media):
        import torch

        tensor = torch.from_numpy(media)
        return tensor if tensor.dtype == torch.float32 else tensor.permute(0, 3, 1, 2).float() / 255


def _stream(folder: Path, *, mode: str, workers: int, steps: int):
    import torch

    from affectgpt.core.types import Labels, Modality, Sample
    from affectgpt.processing.data import BatchStream, MixedBatches, TrainDataset
    from affectgpt.processing.processor import AffectGPTProcessor

    torch.set_num_threads(1)
    video, wav = _clip(folder)
    samples = [
        Sample(name=f"clip{i}", dataset="X", labels=Labels(ovlabels=("happy",)), video=video, audio=wav)
        for i in range(32)
    ]
    transform = _ToTensor()
    processor = AffectGPTProcessor(
        _tokenizer(), mode=mode, transforms=dict.fromkeys((Modality.FRAME, Modality.AUDIO), transform)
    )
    processor.tokenizer = _Characters()
    dataset = TrainDataset(samples, processor, label_types=("ovlabel",))
    batches = MixedBatches([len(samples)], batch_size=4, iters_per_epoch=steps, seed=0)
    return BatchStream({"X": dataset}, batches=batches, num_workers=workers)


def _clip(folder: Path) -> tuple[Path, Path]:
    import av
    import numpy as np
    import soundfile

    video, wav = folder / "clip.mp4", folder / "clip.wav"
    if not video.exists():
        rng = np.random.default_rng(0)
        background = rng.integers(0, 255, (360, 640, 3), dtype=np.uint8)
        with av.open(str(video), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for i in range(88):
                frame = av.VideoFrame.from_ndarray(np.roll(background, 3 * i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        soundfile.write(wav, rng.standard_normal(56_000).astype(np.float32) * 0.1, 16000)
    return video, wav


def loader(folder: Path) -> dict:
    """Two workers against none, one decoding thread in both arms."""
    speeds, processor = {}, {}
    for workers in (0, 2):
        stream = _stream(folder, mode="frame", workers=workers, steps=12)
        for _ in stream(1):  # starts workers and decoders
            pass
        started, before = time.perf_counter(), processor_seconds()
        count = sum(len(batch.names) for batch in stream(2))
        speeds[workers] = count / (time.perf_counter() - started)
        processor[workers] = (processor_seconds() - before) / count * 1000
    return {
        "ratio": speeds[2] / speeds[0],
        "samples_per_second": {f"{k} workers": v for k, v in speeds.items()},
        "processor_ms_per_sample": {f"{k} workers": v for k, v in processor.items()},
    }


def store(folder: Path) -> dict:
    """A training sample of the released frame recipe: stored features against decoding.

    ``first_look_ratio``: what the first look at a record in a process, which compares its checksum, costs beside later
    ones (20 µs for 57 kB; no text is tokenised here).
    """
    import torch

    from affectgpt.core.types import Modality
    from affectgpt.media.reader import media_source
    from affectgpt.processing.features import FeatureReader, FeatureWriter

    stream = _stream(folder, mode="multiframe_audio_frame_text", workers=0, steps=12)
    dataset = stream.parts["X"]
    readers = {}
    for modality, width in ((Modality.FRAME, 768), (Modality.AUDIO, 1024)):
        place = folder / f"store-{modality.value}"
        key = {"encoder": "random", "modality": modality.value}
        writer = FeatureWriter(place, key=key)
        for sample in dataset.samples:
            if sample.name not in writer.done:
                writer.write(sample.name, torch.randn(8, width), source=media_source(sample, modality))
        writer.close()
        readers[modality] = FeatureReader(place, key=key)

    def every():
        for index in range(len(dataset)):
            dataset[1, index]

    decoded, decoded_processor = milliseconds(every, repeats=2)
    dataset.features = readers

    def first_look():
        for reader in readers.values():
            reader._good = [bytearray(len(records)) for records in reader._good]
        every()

    # in turn: other work on the machine slows both alike
    pairs = [(milliseconds(every, repeats=5), milliseconds(first_look, repeats=5)) for _ in range(20)]
    stored, stored_processor = (statistics.median(times[i] for times, _ in pairs) for i in range(2))
    return {
        "ratio": decoded / stored, "processor_ratio": decoded_processor / stored_processor,
        "first_look_ratio": statistics.median(first[0] / again[0] for again, first in pairs),
        "stored_ms": stored / len(dataset), "decoded_ms": decoded / len(dataset),
    }  # fmt: skip


def growth(folder: Path, *, opened: int) -> dict:
    """Memory over epochs, the lowest after four against the lowest after eight; of the decoder over many videos.

    The lowest, since a batch of 90 MB that is read ahead is there at one moment and gone at the next.
    """
    from affectgpt.media.guard import Decoder

    stream = _stream(folder, mode="frame", workers=0, steps=12)
    after = []
    for epoch in range(1, 9):
        for _ in stream(epoch):
            pass
        after.append(resident_mb())
    video, _ = _clip(folder)
    decoder = Decoder()
    sizes = []
    for i in range(opened):
        decoder.frames(video)
        if i in (opened // 10, opened - 1):
            pages = int(Path(f"/proc/{decoder._idle[0].pid}/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    decoder.close()
    grown = min(after[4:]) - min(after[:4])
    return {"epochs_growth_mb": grown, "opened": opened, "decoder_growth_mb": sizes[-1] - sizes[0]}


def main() -> int:
    """Run every measurement in a process of its own and print the ratios beside their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("faces", "table", "store", "loader", "growth"))
    parser.add_argument("--opened", type=int, default=2000, help="videos opened to look for a leak (2000: 3 minutes)")
    add_out_argument(parser, "data")
    parser.add_argument("--in-process", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = {
        "faces": faces,
        "table": table,
        "store": store,
        "loader": loader,
        "growth": lambda f: growth(f, opened=args.opened),
    }
    if args.in_process:
        print(json.dumps(work[args.only](Path(args.in_process))))
        return 0
    bench = Run(parser, args)
    results = {}
    with tempfile.TemporaryDirectory(prefix="affectgpt-benchmark-") as folder:
        for name in [args.only] if args.only else work:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--only", name, "--opened", str(args.opened), "--in-process", folder]
            run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if run.returncode:
                print(run.stderr, file=sys.stderr)
                return 1
            results[name] = json.loads(run.stdout.splitlines()[-1])
    targets = {
        ("faces", "ratio"): (">=", 15),
        ("faces", "processor_ratio"): (">=", 15),
        ("faces", "memory_mb"): ("<=", 20),
        ("table", "seconds"): ("<=", 3),
        ("table", "memory_mb"): ("<=", 300),
        ("store", "ratio"): (">=", 20),
        ("store", "processor_ratio"): (">=", 20),
        ("loader", "ratio"): (">=", 1.3),
        ("growth", "epochs_growth_mb"): ("<=", 20),
        ("growth", "decoder_growth_mb"): ("<=", 5),
    }
    missed = 0
    for (name, key), (sign, target) in targets.items():
        if name in results:
            value = results[name][key]
            met = value >= target if sign == ">=" else value <= target
            missed += not met
            print(f"{name:8} {key:20} {value:10.2f}  {sign} {target:<6} {'met' if met else 'MISSED'}")
    print(json.dumps(results, indent=1))
    bench.record("data", results, model="none")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
