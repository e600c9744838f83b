"""One clip: the published ``inference_sample.py``."""

from __future__ import annotations

import argparse
import sys

from affectgpt.cli.common import run_cli
from affectgpt.cli.infer import add_inference_arguments


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="inference_sample.py",
        description="Ask a checkpoint about one video. The audio track and the faces are taken from the video.",
    )
    add_inference_arguments(parser)
    parser.add_argument("--video_path", required=True, metavar="FILE", help="any video file")
    parser.add_argument("--audio_path", metavar="FILE", help="its audio, instead of the video's own track")
    parser.add_argument("--face_npy", metavar="FILE", help="face crops [N, H, W, 3] uint8, instead of detection")
    parser.add_argument("--subtitle", default="", metavar="TEXT", help="what is said (default: empty)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, answer, print."""
    args = build_parser().parse_args(argv)

    import json

    from affectgpt.core.runtime import setup_logging
    from affectgpt.inference.predictor import Predictor

    setup_logging()
    predictor = Predictor.from_config(args.cfg_path, options=args.options, mode=args.outside_face_or_frame)
    reply = predictor(
        args.video_path,
        subtitle=args.subtitle,
        audio=args.audio_path,
        face=args.face_npy,
        question=args.outside_user_message,
    )
    if args.json:
        print(json.dumps(reply.as_dict(), ensure_ascii=False))
        return 0
    print(f"answer: {reply.answer}")
    if reply.labels:
        print(f"labels: {', '.join(reply.labels)}")
    for flag in reply.flags:
        print(f"note:   {flag}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
