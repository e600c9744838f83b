"""The web page: a clip in, a streamed answer out, and beside it what the model saw and heard."""

from __future__ import annotations

import base64
import html
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError, DataError
from affectgpt.core.runtime import logger
from affectgpt.core.types import SAMPLE_RATE, SOUND_SUFFIXES, Modality
from affectgpt.inference.predictor import ReadClip
from affectgpt.media.audio import read_wave
from affectgpt.media.video import sample_faces
from affectgpt.processing.modes import get_mode
from affectgpt.processing.questions import render_question
from affectgpt.serve import pictures
from affectgpt.serve.api import words_for_strangers
from affectgpt.serve.service import Ask, Asked, Choice, Piece, Service
from affectgpt.serve.settings import TOY

LABELS, DESCRIPTION, OWN = "Labels", "Description", "Own question"
FIRST = "most prominent"
_SHOWN_FACE = 112  # pixels
_SHOWN_FRAME = 320
_KEEP = 15 * 60  # seconds that an upload stays for another question
_SWEEP = 60
_CAMERA = {"video": {"width": {"ideal": 1280}, "height": {"ideal": 720}, "frameRate": {"ideal": 30}}}
_ASKS = 8  # questions of pages that are answered at once

_CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.ag-note { border-radius: 8px; padding: 10px 14px; margin: 4px 0; font-size: .95em;
  background: #d55e0018; border: 1px solid #d55e0066; color: var(--body-text-color); }
.ag-answer { font-size: 1.08em; line-height: 1.55; min-height: 3.2em; overflow-wrap: anywhere; white-space: pre-wrap; }
.ag-label { display: inline-block; border-radius: 999px; padding: 3px 12px; margin: 3px 6px 3px 0; font-weight: 600;
  background: #0072b222; border: 1px solid #0072b288; color: var(--body-text-color); }
.ag-label small { font-weight: 400; opacity: .75; }
.ag-strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(68px, 12.5% - 6px), 1fr)); gap: 6px;
  margin: 4px 0 12px; }
.ag-strip figure { margin: 0; }
#ag-video video { max-height: 262px; }
.ag-strip img { width: 100%; border-radius: 6px; display: block; }
.ag-strip figcaption { font-size: .8em; opacity: .8; line-height: 1.25; }
.ag-plot { width: 100%; max-width: 640px; display: block; }
.ag-wheel .ag-plot { max-width: 420px; margin: 0 auto; }
.ag-seen h4 { margin: 6px 0 2px; font-size: .95em; }
.ag-seen p, .ag-muted { opacity: .75; font-size: .9em; margin: 2px 0 6px; }
.ag-json a { display: inline-block; border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: 7px 14px; text-decoration: none !important; color: var(--body-text-color) !important; }
@media (max-width: 520px) { .gradio-container .main { padding: 10px !important; } }
footer { opacity: .7; }
"""


def add_page(app: Any, service: Service, *, examples: Sequence[tuple[Path, str]] = ()) -> tuple[Path, dict[int, int]]:
    """Mount the page at ``/``. ``examples``: clips and what is said in them. Returns the folder of the uploads, and the
    functions that a request of the page may call: number → how many inputs it takes.

    Gradio's environment is set here: no analytics, uploads below the service's private folder.
    """
    folder = service.folders.root / "page"
    folder.mkdir(mode=0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    import gradio as gr

    kept = _copied(examples, folder / "examples")
    blocks = _blocks(gr, service, kept)
    gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, show_error=False, ssr_mode=False, pwa=False,
        enable_monitoring=False, mcp_server=False, max_file_size=service.settings.media_bytes,
        theme=_theme(gr), head=f"<style>{_CSS}</style>",  # css= is for what is inside of blocks only
    )  # fmt: skip
    # Until this is set, gradio lets a request name any file of this machine, and serves it; launch() sets it, mounting
    # does not. The shield refuses such requests before (see names_only_uploads).
    blocks.has_launched = True
    threading.Thread(target=_sweep, args=(folder, set(folder.rglob("*"))), daemon=True).start()  # the examples stay
    return folder, {number: len(function.inputs) for number, function in blocks.fns.items()}


def _theme(gr: Any) -> Any:
    """Gradio's default with the fonts of the reader's system: its own come from a font server."""
    sans = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    return gr.themes.Default(primary_hue="blue", font=sans, font_mono=mono)


def _blocks(gr: Any, service: Service, examples: Sequence[tuple[Path, str]]) -> Any:
    media = get_mode(service.session.mode).media
    parameters = sum(p.numel() for p in service.session.model.parameters())
    with gr.Blocks(title=f"AffectGPT · {service.model}", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# AffectGPT\nWhat does a person in a clip express? Model **{html.escape(service.model)}**, input mode "
            f"`{service.session.mode}`. The answer names what an expression suggests, not what somebody feels."
        )
        if parameters < TOY:
            gr.HTML(
                f'<div class="ag-note" role="note" id="ag-toy"><b>A toy is running.</b> This model has {parameters:,} '
                "parameters and was taught drawn faces and synthetic voices (<code>make demo</code>), or nothing at "
                "all. What it says of real people means nothing.</div>"
            )
        with gr.Row():
            with gr.Column(scale=5, min_width=260):
                video = gr.Video(
                    label=f"Clip (≤ {service.settings.media.seconds:g} s, {service.settings.megabytes:g} MB)",
                    sources=["upload", "webcam"], include_audio=True, height=340, elem_id="ag-video",
                    webcam_options=gr.WebcamOptions(mirror=False, constraints=_CAMERA),
                )  # fmt: skip
                heard = service.reader.recognise is not None
                subtitle = gr.Textbox(
                    label="What is said", lines=1, max_length=2000, elem_id="ag-subtitle",
                    placeholder="empty: heard by speech recognition" if heard else "empty: nothing",
                )  # fmt: skip
                asked = gr.Radio([LABELS, DESCRIPTION, OWN], value=LABELS, label="Question", elem_id="ag-question")
                own = gr.Textbox(label="Your question", visible=False, max_length=2000, elem_id="ag-own")
                person = gr.Radio([FIRST], value=FIRST, label="Whose face", visible=False, elem_id="ag-person")
                ask = gr.Button("Ask", variant="primary", elem_id="ag-ask")
                if examples:
                    gr.Examples(
                        [[str(path), said] for path, said in examples], inputs=[video, subtitle],
                        label="Drawn clips to try", cache_examples=False, examples_per_page=3, api_visibility="private",
                    )  # fmt: skip
            with gr.Column(scale=7, min_width=260):
                answer = gr.HTML(_muted("The answer comes here."), elem_id="ag-answer")
                wheel = gr.HTML("", elem_id="ag-wheel", elem_classes="ag-wheel")
                download = gr.HTML("", elem_id="ag-json", elem_classes="ag-json")
                with gr.Accordion("What the model saw and heard", open=True):
                    seen = gr.HTML(_muted("Faces, frames and sound of the clip."), elem_id="ag-seen")

        def show_own(chosen: str) -> Any:
            return gr.update(visible=chosen == OWN)

        def forget() -> Any:
            return gr.update(choices=[FIRST], value=FIRST, visible=False)

        def run(clip: Any, said: str, chosen: str, text: str, who: str | None) -> Iterator[dict[Any, Any]]:
            for update in _answers(service, clip, said, chosen, text, who, media):
                people = update.pop("people", None)
                given = {"answer": answer, "wheel": wheel, "download": download, "seen": seen}
                shown: dict[Any, Any] = {given[name]: value for name, value in update.items()}
                if people is not None:
                    choices = [(FIRST, FIRST), *((where, str(i)) for i, where in enumerate(people))]
                    shown[person] = gr.update(choices=choices, visible=len(people) > 1)
                yield shown

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked.change(show_own, asked, own, concurrency_limit=None, **hidden)
        video.change(forget, None, person, concurrency_limit=None, **hidden)
        ask.click(
            run, [video, subtitle, asked, own, person], [answer, wheel, download, seen, person],
            concurrency_limit=_ASKS, **hidden,
        )  # fmt: skip
    for function in blocks.fns.values():  # the examples' too; what fails in the queue is told in the page's stream
        function.queue = True
    blocks.queue(max_size=service.settings.waiting, api_open=False)
    return blocks


def _answers(
    service: Service, clip: Any, said: str, chosen: str, text: str, who: str | None, media: Sequence[Modality]
) -> Iterator[dict[str, Any]]:
    """What the page shows, step by step. Nothing of an error but its words gets there."""
    yield {"answer": _muted("Reading the clip …"), "wheel": "", "download": "", "seen": ""}
    asked: Asked | None = None
    try:
        said, text = (said or "").strip(), (text or "").strip()
        if chosen == OWN and not text:
            raise DataError("type your question, or choose another one")
        if not clip and set(media) - {Modality.AUDIO}:
            raise DataError("give a clip first: drop a video, record one, or take one of the drawn clips")
        question = {DESCRIPTION: render_question("description"), OWN: text[:2000]}.get(chosen)
        wanted = Ask(
            video=Path(clip) if clip else None, subtitle=said[:2000] or None, question=question,
            person=None if who in (None, FIRST) else str(who),
        )  # fmt: skip
        with service.admitted():
            look = _Look(service)
            asked = service.read(wanted, look=look).result(service.settings.request_timeout)
            yield {
                "answer": _muted("Asking the model …"), "seen": look.html,
                "people": [someone.where for someone in asked.clip.people],
            }  # fmt: skip
            events: queue.Queue[Piece | Choice] = queue.Queue()
            service.answer(asked, events.put, stream=True)
            so_far, end = "", time.monotonic() + service.settings.request_timeout
            while True:
                event = events.get(timeout=max(end - time.monotonic(), 0.01))
                if isinstance(event, Choice):
                    break
                so_far += event.text
                yield {"answer": f'<div class="ag-answer" aria-live="polite">{html.escape(so_far)}▌</div>'}
            if event.error is not None:
                raise event.error
            yield _finished(service, asked, event)
    except (queue.Empty, TimeoutError):
        yield {"answer": _problem("The answer took too long.")}
    except AffectGPTError as error:
        yield {"answer": _problem(words_for_strangers(error))}
    except Exception:
        logger.exception("the page's request failed")
        yield {"answer": _problem("The server failed; its log says why.")}
    finally:
        if asked is not None:
            asked.cancel()


def _finished(service: Service, asked: Asked, choice: Choice) -> dict[str, Any]:
    assert choice.answer is not None
    found = service.explained(asked, choice)
    first = service.lexicon.wheels[0]
    marked = {label: group for label, groups in found["groups"].items() if (group := groups.get(first.name))}
    parts = [f'<div class="ag-answer">{html.escape(choice.answer.text) or _muted("(an empty answer)")}</div>']
    if found["labels"]:
        chips = "".join(
            f'<span class="ag-label">{html.escape(label)}'
            + (f" <small>{html.escape(marked[label])}</small>" if label in marked else "")
            + "</span>"
            for label in found["labels"]
        )
        parts.append(f"<div>{chips}</div>")
    parts += [f'<div class="ag-note" role="note">{html.escape(note)}</div>' for note in found["notes"]]
    shown = ""
    if marked:
        named = f"Labels on {first.name}'s wheel: " + ", ".join(f"{k} in {v}" for k, v in marked.items())
        shown = pictures.image(pictures.wheel(first, marked), alt=named)
    record = {"model": service.model, "answer": choice.answer.text, **found}
    data = base64.b64encode(json.dumps(record, ensure_ascii=False, indent=1).encode()).decode()
    link = f'<a download="affectgpt.json" href="data:application/json;base64,{data}">Download as JSON</a>'
    return {"answer": "".join(parts), "wheel": shown, "download": link}


class _Look:
    """Makes the pictures of a clip while its files are there."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.html = ""

    def __call__(self, clip: ReadClip, video: Path | None, audio: Path | None) -> None:
        service, parts = self.service, []
        processor = service.session.processor
        media = get_mode(service.session.mode).media
        if clip.crops is not None:
            faces = sample_faces(clip.crops, n_frames=processor.n_frames, size=_SHOWN_FACE)
            parts += [f"<h4>The {len(faces)} faces</h4>", pictures.strip(faces, what="face")]
        if len(clip.people) > 1:
            people = [someone.crop for someone in clip.people]
            names = [someone.where for someone in clip.people]
            parts += ["<h4>Who is there</h4>", pictures.strip(people, names=names, what="person")]
        if video is not None and video.suffix.lower() not in SOUND_SUFFIXES:
            read, _ = service.decoder.native_frames(
                video, n_frames=processor.n_frames, start=0, count=processor.n_frames, longest_side=_SHOWN_FRAME
            )
            frames = [read[min(i, len(read) - 1)] for i in range(processor.n_frames)]  # as a short clip is read
            seen = Modality.FRAME in media
            title = f"The {len(frames)} frames" if seen else "Frames (this model sees the face alone)"
            parts += [f"<h4>{title}</h4>", pictures.strip(frames, what="frame")]
        parts += self._sound(audio or video, heard=Modality.AUDIO in media)
        if clip.sample.subtitle:
            parts.append(f"<p>What is said: “{html.escape(clip.sample.subtitle)}”</p>")
        self.html = f'<div class="ag-seen">{"".join(parts)}</div>'

    def _sound(self, path: Path | None, *, heard: bool) -> list[str]:
        if path is None:
            return []
        if path.suffix.lower() in SOUND_SUFFIXES:
            samples: Any = read_wave(path)  # plain samples that the intake has written
        else:
            samples = self.service.decoder.sound(path, limits=self.service.settings.media)
        if samples is None:
            return ["<p>The clip has no sound.</p>"]
        spacing = self.service.session.processor.audio_clip_spacing
        title = "The sound, and the eight clips of two seconds that are heard" if heard else "The sound (not heard)"
        seconds = len(samples) / SAMPLE_RATE
        plot = pictures.image(pictures.wave(samples, spacing=spacing), alt=f"Sound of {seconds:.1f} seconds")
        return [f"<h4>{title}</h4>", plot]


def _copied(examples: Sequence[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    """Examples in the uploads' folder: of all other files the page may not speak."""
    made = []
    for i, (path, said) in enumerate(examples):
        target = folder / str(i) / path.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
        made.append((target, said))
    return made


def _sweep(folder: Path, keep: set[Path]) -> None:
    """Remove uploads that are old, as long as the folder is there."""
    while folder.is_dir():
        time.sleep(_SWEEP)
        sweep(folder, keep, older_than=_KEEP)


def sweep(folder: Path, keep: set[Path], *, older_than: float) -> None:
    """Remove what is in ``folder`` and was not touched for so many seconds, but not what is in ``keep``."""
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):
        try:
            if path in keep:
                continue
            if path.is_dir():
                if now - path.stat().st_mtime > older_than and not any(path.iterdir()):
                    path.rmdir()
            elif now - path.stat().st_mtime > older_than:
                path.unlink()
        except OSError:
            continue


def _muted(text: str) -> str:
    return f'<div class="ag-muted">{text}</div>'


def _problem(words: str) -> str:
    return f'<div class="ag-note ag-error" role="alert">{html.escape(words)}</div>'
