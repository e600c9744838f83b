"""The server with eight clients against one request after the other: seconds, and whether the answers are equal.

    python benchmarks/serve.py                    models of medium size, random weights, on this CPU
    python benchmarks/serve.py --size tiny        encoders that cost little beside the LLM, as on a GPU
    python benchmarks/serve.py --mode multiface_audio_face_text      with face detection, which is no part of a batch

Both ways ask the same running server the same questions with the same seeds, over HTTP, so that only what is answered
together differs. Random weights never stop: an answer has as many tokens as it may.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from inference import TOKENS, make_models  # noqa: E402
from records import Run, add_out_argument  # noqa: E402


def build(root: Path, *, mode: str, size: str):
    """A service of a medium model with random weights, and its server in a thread."""
    from tiny import make_tiny_models
    from tiny_world import World, write_run

    from affectgpt.inference.predictor import Predictor
    from affectgpt.serve.server import Running
    from affectgpt.serve.service import ServeSettings, Service

    world = World(root, make_tiny_models(root / "models") if size == "tiny" else make_models(root / "models", size))
    write_run(world.run_folder, world.config(), (11,))
    predictor = Predictor.from_config(
        world.yaml, mode=mode, options=[f"inference.max_new_tokens={TOKENS['description']}", "inference.batch_size=16"]
    )
    service = Service(predictor, ServeSettings(port=0), model=size)
    return service, Running(service)


def clocks() -> tuple[float, float]:
    """Wall and processor seconds, the latter without the helpers that decode, for busy machines."""
    return time.perf_counter(), time.process_time()


def measure(n_requests: int, clients: int, threads: int, mode: str, size: str) -> dict:
    """Seconds and answers of both ways for each question."""
    import httpx2
    import torch
    from drawn_clip import write_clip

    from affectgpt.processing.questions import render_question

    torch.set_num_threads(threads)
    found: dict = {"requests": n_requests, "clients": clients, "threads": threads, "mode": mode, "tokens": TOKENS}
    questions = {"labels": render_question("ovlabel"), "description": render_question("description")}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        videos = [write_clip(root / f"{i}.mp4", seed=i).read_bytes() for i in range(clients)]
        service, server = build(root, mode=mode, size=size)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        with httpx2.Client(base_url=server.address, timeout=600, trust_env=False) as http:

            def ask(question: str, number: int) -> str:
                url = f"data:video/mp4;base64,{base64.b64encode(videos[number % clients]).decode()}"
                content = [
                    {"type": "video_url", "video_url": {"url": url}},
                    {"type": "text", "text": questions[question]},
                ]
                body = {"messages": [{"role": "user", "content": content}], "seed": number,
                        "max_tokens": TOKENS[question], "subtitle": "I did not think so. " * (number % 3)}  # fmt: skip
                reply = http.post("/v1/chat/completions", json=body)
                reply.raise_for_status()
                return reply.json()["choices"][0]["message"]["content"]

            for question in questions:
                with ThreadPoolExecutor(clients) as pool:  # libraries are loaded, a helper for each reader has started
                    list(pool.map(lambda i, q=question: ask(q, i), range(clients)))
                began = clocks()
                alone = [ask(question, i) for i in range(n_requests)]
                one_by_one = [now - then for now, then in zip(clocks(), began, strict=True)]
                service.batcher.batches.clear()
                began = clocks()
                with ThreadPoolExecutor(clients) as pool:
                    together = list(pool.map(lambda i, q=question: ask(q, i), range(n_requests)))
                at_once = [now - then for now, then in zip(clocks(), began, strict=True)]
                found[question] = {
                    "batches": list(service.batcher.batches),
                    "equal_answers": sum(a == b for a, b in zip(alone, together, strict=True)),
                }
                for clock, one, both in zip(("wall", "processor"), one_by_one, at_once, strict=True):
                    found[question][f"{clock}_seconds"] = {"one_by_one": one, "together": both}
                    found[question][f"{clock}_ratio"] = one / both
        server.stop()
        thread.join()
        service.close()
    return found


def main() -> None:
    """Parse, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of an operation (2; of a tiny model 1, as the server sets it)")
    parser.add_argument("--mode", default="multiframe_audio_frame_text")
    parser.add_argument("--size", choices=("tiny", "medium"), default="medium")
    add_out_argument(parser, "serve")
    args = parser.parse_args()
    bench = Run(parser, args)
    threads = args.threads or (1 if args.size == "tiny" else 2)
    numbers = measure(args.requests, args.clients, threads, args.mode, args.size)
    print(json.dumps(numbers, indent=1))
    bench.record("serve", numbers, model=args.size)


if __name__ == "__main__":
    main()
