"""From raw clips to everything the model wants: face crops, sound, subtitles."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from affectgpt.cli.common import run_cli

_SAVE_EVERY = 30  # seconds of speech recognition that a kill may cost


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt preprocess",
        description="Make face crops (openface_face/NAME.npy), sound (audio/NAME.wav, 16 kHz) and subtitles "
        "(subtitle.csv, a row per clip) of a folder of videos. What is there already is kept; run it again to resume. "
        "Clips that cannot be processed (damaged, no face) are listed in failed.csv and get no row in subtitle.csv. "
        "Several folders can go into one ROOT, one after the other.",
    )
    parser.add_argument("--video-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="ROOT")
    parser.add_argument(
        "--frames", type=int, default=32, metavar="N", help="look for the face in N uniform frames; 0: in all"
    )
    parser.add_argument(
        "--channels", choices=("bgr", "rgb"),
        help="channel order of the stored crops (default: that of the crops that are there, else bgr, as published). "
        "openface_face/crops.json records it; whoever reads the crops converts them to what the model wants",
    )  # fmt: skip
    parser.add_argument(
        "--face-framing", choices=("loose", "tight"),
        help="loose (default): the whole head with hair and background; tight: the face fills the crop from jaw to jaw "
        "and what is outside a mean face's outline is black, near to the published crops",
    )  # fmt: skip
    parser.add_argument(
        "--person", metavar="WHO",
        help="whose face where several people are in the picture: left, middle, right, or a number: 0 is the most "
        "prominent (default); clips without such a person fail",
    )  # fmt: skip
    parser.add_argument("--sheet", action="store_true", help="also a picture of the crops per clip, sheets/NAME.png")
    parser.add_argument(
        "--asr", metavar="FOLDER",
        help="Whisper model folder (Hugging Face's format, or faster-whisper's with the extra [asr]) that hears the "
        "subtitle of clips without .srt or .vtt beside them",
    )  # fmt: skip
    parser.add_argument(
        "--asr-language", metavar="CODE", help="language that is spoken, e.g. en or zh (default: heard, clip by clip)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="clips at once (default 2)")
    parser.add_argument("--time-limit", type=float, default=120, metavar="S", help="seconds to decode a part of a clip")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Process every clip; 1 when some could not be processed (they are in failed.csv)."""
    args = build_parser().parse_args(argv)

    from concurrent.futures.process import BrokenProcessPool

    from tqdm import tqdm

    from affectgpt.core.errors import AffectGPTError, ConfigError
    from affectgpt.core.runtime import logger, setup_logging, worker_pool
    from affectgpt.preprocess.asr import Transcriber
    from affectgpt.preprocess.clip import NO_SOUND, ClipFolders, claim, find_videos, process, start_worker
    from affectgpt.preprocess.faces import check_person

    setup_logging()
    if args.frames < 0 or args.workers < 1:
        raise ConfigError("--frames must be 0 or more, --workers 1 or more")
    videos = find_videos(args.video_dir)
    places = ClipFolders(args.out)
    if args.asr_language and not args.asr:
        raise ConfigError("--asr-language goes with --asr FOLDER")
    person = check_person(args.person)
    settings = claim(places, frames=args.frames, channels=args.channels, framing=args.face_framing, person=person)
    transcribe = Transcriber(args.asr, language=args.asr_language) if args.asr else None
    options = {
        "n_frames": args.frames,
        "sheet": args.sheet,
        "channels": settings["channels"],
        "framing": settings["framing"],
        "person": settings["person"],
        "time_limit": args.time_limit,
    }
    failures: list[tuple[str, str]] = []
    silent = 0
    try:
        with worker_pool(min(args.workers, len(videos)), start=start_worker, args=(places, options)) as pool:
            results = pool.map(process, videos)
            for outcome in tqdm(results, total=len(videos), desc="faces and sound", unit="clip", disable=None):
                failures += [(outcome.name, error) for error in outcome.errors]
                silent += NO_SOUND in outcome.notes
    except BrokenProcessPool:
        raise AffectGPTError(
            "a worker process was killed (out of memory?); run the same command again to resume, with fewer --workers"
        ) from None
    written = write_subtitles(videos, places, transcribe, failures)
    failed_file = args.out / "failed.csv"
    folder = str(args.video_dir.resolve())
    listed = _failures_elsewhere(failed_file, folder, {video.stem for video in videos})
    listed += [(name, reason, folder) for name, reason in failures]
    if listed:
        _write_csv(failed_file, ("sample", "reason", "folder"), listed)
    else:
        failed_file.unlink(missing_ok=True)
    for name, reason in failures[:10]:
        logger.warning("%s: %s", name, reason)
    failed = len({name for name, _ in failures})
    why = f" (see {failed_file}; not in {places.subtitles.name})" if failed else ""
    logger.info(
        "%d clips, %d failed%s, %d without a sound track, %d with a subtitle: %s",
        len(videos), failed, why, silent, written, args.out,
    )  # fmt: skip
    return 1 if failures else 0


def write_subtitles(videos: list[Path], places, transcribe, failures: list[tuple[str, str]]) -> int:
    """Write subtitle.csv, a row for every clip that did not fail, empty where no words are known; how many have some.

    What is there is kept: words, and columns that a user added; but a failed clip's row goes when it says nothing.
    """
    import time

    from tqdm import tqdm

    from affectgpt.core.errors import DataError
    from affectgpt.core.tables import read_header, read_table
    from affectgpt.preprocess.subtitles import beside

    columns = ["name", "english"]
    known: dict[str, dict[str, str]] = {}

    def save() -> None:
        if known:
            _write_csv(places.subtitles, columns, [[known[name][c] for c in columns] for name in sorted(known)])

    if places.subtitles.exists():
        columns = read_header(places.subtitles)
        cells = read_table(places.subtitles, key="name", columns=tuple(columns))
        read_table(places.subtitles, key="name", columns=("english",))  # or an error that names the column
        known = {name: dict(zip(columns, row, strict=True)) for name, row in cells.items()}
    failed = {name for name, _ in failures}
    known = {n: row for n, row in known.items() if n not in failed or any(row[c] for c in columns if c != "name")}
    missing = [v for v in videos if v.stem not in failed and not known.get(v.stem, {}).get("english")]
    saved = time.monotonic()
    try:
        for video in tqdm(missing, desc="subtitles", unit="clip", disable=None if transcribe else True):
            try:
                text = beside(video)
                if text is None and transcribe is not None:
                    wav = places.audio(video.stem)
                    text = transcribe(wav) if wav.exists() else ""
            except DataError as error:
                failures.append((video.stem, str(error)))
                continue
            known.setdefault(video.stem, dict.fromkeys(columns, "")).update(name=video.stem, english=text or "")
            if time.monotonic() - saved > _SAVE_EVERY:
                save()
                saved = time.monotonic()
    finally:  # an interrupted transcription resumes where it was
        save()
    return sum(bool(row["english"]) for row in known.values())


def _failures_elsewhere(path: Path, folder: str, looked_at: Collection[str]) -> list[tuple[str, ...]]:
    """The rows of failed.csv (sample, reason, folder) of clips in other folders, which this run did not look at."""
    from affectgpt.core.errors import DataError

    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [(*row, "", "")[:3] for row in list(csv.reader(handle))[1:] if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it, and run the same command again") from error
    return [row for row in rows if row[0] not in looked_at and row[2] != folder]


def _write_csv(path: Path, header: Sequence[str], rows: list) -> None:
    from affectgpt.core.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])


if __name__ == "__main__":
    sys.exit(run_cli(main))
