"""Single clips: the published ``inference_sample.py``."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import run_cli
from affectgpt.cli.infer import add_inference_arguments, load_inference_config
from affectgpt.core.errors import printable

if TYPE_CHECKING:
    from affectgpt.config.schema import Config
    from affectgpt.preprocess.asr import Transcriber


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command, and ours."""
    parser = argparse.ArgumentParser(
        prog="inference_sample.py",
        description="Ask a checkpoint, or each of several (inference.test_epochs), about videos. The audio track and "
        "the faces are taken from the video.",
    )
    add_inference_arguments(parser)
    parser.add_argument(
        "--video_path",
        nargs="+",
        default=[],
        metavar="FILE",
        help="video files, or folders of them; not needed where the input mode takes nothing of a video",
    )
    parser.add_argument(
        "--audio_path", metavar="FILE", help="its audio, instead of the video's own track; alone for an audio mode"
    )
    parser.add_argument("--face_npy", metavar="FILE", help="face crops [N, H, W, 3] uint8, instead of detection")
    parser.add_argument(
        "--face_channels", choices=("bgr", "rgb"),
        help="channel order of --face_npy (default: as crops.json in its folder says, else bgr)",
    )  # fmt: skip
    parser.add_argument(
        "--face_framing", choices=("loose", "tight"), default="loose",
        help="of faces taken from the video: loose (default) shows the whole head, as `affectgpt preprocess` does; "
        "tight comes near to OpenFace's, on which the released face model was trained",
    )  # fmt: skip
    parser.add_argument(
        "--person", metavar="WHO",
        help="whose face where several people are in the picture: left, middle, right, or a number: 0 is the most "
        "prominent (default)",
    )  # fmt: skip
    parser.add_argument(
        "--subtitle", metavar="TEXT", help="what is said (default: the .srt or .vtt beside the video, else empty)"
    )
    parser.add_argument(
        "--asr",
        metavar="FOLDER",
        help="Whisper model folder (Hugging Face's format, or faster-whisper's with the extra [asr]) that hears the "
        "subtitle where there is none",
    )
    parser.add_argument(
        "--asr-language", metavar="CODE", help="language that is spoken, e.g. en or zh (default: heard, clip by clip)"
    )
    parser.add_argument("--both", action="store_true", help="labels and a description")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line and video")
    return parser


def find_videos(paths: Sequence[str]) -> list[Path]:
    """Files as they are given; of a folder the videos in it, by name. Raises DataError for what is not there."""
    from affectgpt.core.errors import DataError
    from affectgpt.core.types import VIDEO_SUFFIXES
    from affectgpt.preprocess.clip import is_video

    videos: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(filter(is_video, path.iterdir()))
            if not found:
                raise DataError(
                    f"--video_path {path}: no video in this folder (looked for {', '.join(VIDEO_SUFFIXES)})"
                )
            videos += found
        elif path.is_file():
            videos.append(path)
        else:
            raise DataError(f"--video_path {path}: no such file or folder")
    return videos


def transcriber(args: argparse.Namespace, config: Config) -> Transcriber | None:
    """The speech recognition of ``--asr``, on the device of the model."""
    if not args.asr:
        return None

    from affectgpt.inference.session import inference_device
    from affectgpt.preprocess.asr import Transcriber

    return Transcriber(args.asr, device=str(inference_device(config)), language=args.asr_language)


def main(argv: list[str] | None = None) -> int:
    """Parse, answer, print. Exit status 1 when a video of several could not be answered."""
    args = build_parser().parse_args(argv)

    from affectgpt.core.errors import ConfigError, DataError
    from affectgpt.core.runtime import logger, setup_logging
    from affectgpt.preprocess.faces import check_person

    setup_logging()
    if args.both and args.outside_user_message:
        raise ConfigError("--both asks the two published questions; --outside_user_message another: give one of them")
    if args.face_channels and not args.face_npy:
        raise ConfigError("--face_channels goes with --face_npy")
    if args.asr_language and not args.asr:
        raise ConfigError("--asr-language goes with --asr FOLDER")
    if args.person is not None and args.face_npy:
        raise ConfigError("--person goes without --face_npy")
    check_person(args.person)
    videos: list[Path | None] = [*find_videos(args.video_path)] or [None]
    for option in ("audio_path", "face_npy", "subtitle"):
        if len(videos) > 1 and getattr(args, option) is not None:
            raise ConfigError(f"--{option} belongs to one video; {len(videos)} are given")
    config = load_inference_config(args, args.options)

    from affectgpt.config.paths import CheckpointFile, select_checkpoints
    from affectgpt.inference.predictor import Predictor, check_inputs
    from affectgpt.inference.session import training_mode
    from affectgpt.modeling.build import exported_config, exported_weights

    shared = {
        "recognise": transcriber(args, config),
        "face_framing": args.face_framing,
    }
    if args.hf:
        config, mode = exported_config(args.hf, config, mode=args.outside_face_or_frame)
        checkpoints = [CheckpointFile(exported_weights(args.hf), epoch=0, loss=0.0)]
    else:
        mode = args.outside_face_or_frame or training_mode(config)
        checkpoints = select_checkpoints(config)
    check_inputs(mode, video=videos[0], audio=args.audio_path, face=args.face_npy)
    if args.hf:
        predictor = Predictor.from_pretrained(args.hf, config=config, mode=mode, **shared)
    else:
        predictor = Predictor.from_config(
            args.cfg_path, checkpoint=checkpoints[0].path, options=args.options, mode=mode,
            keep_features=len(checkpoints) > 1, **shared,
        )  # fmt: skip
    failed = 0
    for checkpoint, video in itertools.product(checkpoints, videos):
        predictor.use(checkpoint.path)
        made_by = {"checkpoint": checkpoint.path.name} if len(checkpoints) > 1 else {}
        source = {"video": str(video)} if video is not None else {"video": "", "audio": args.audio_path}
        try:
            reply = predictor(
                video,
                subtitle=args.subtitle,
                audio=args.audio_path,
                face=args.face_npy,
                face_channels=args.face_channels,
                person=args.person,
                question=args.outside_user_message,
            )
            if args.both:
                reply.describe()
        except DataError as error:
            if len(videos) == 1:
                raise
            failed += 1
            logger.error("%s", error)
            if args.json:
                _print_json({**made_by, **source, "error": str(error)})
            continue
        if args.json:
            _print_json({**made_by, **source, **reply.as_dict()})
        else:
            _show({**made_by, **reply.as_dict()}, name=str(video) if len(videos) > 1 else None)
    return 1 if failed else 0


def _show(reply: dict[str, Any], *, name: str | None) -> None:
    lines = [f"checkpoint: {reply['checkpoint']}"] if "checkpoint" in reply else []
    lines += [] if name is None else [f"video:  {printable(name)}"]
    lines.append(f"answer: {reply['answer']}")
    if reply["labels"]:
        lines.append(f"labels: {', '.join(reply['labels'])}")
    if "description" in reply:
        lines.append(f"description: {reply['description']}")
    lines += [f"note:   {note}" for note in reply["notes"]]
    print(printable("\n".join(lines), lines=True), flush=True)


def _print_json(value: dict[str, Any]) -> None:
    print(printable(json.dumps(value, ensure_ascii=False)), flush=True)


if __name__ == "__main__":
    sys.exit(run_cli(main))
