"""The web page: a clip in, a streamed answer out, and beside it what the model saw and heard."""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import os
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from affectgpt.core.errors import AffectGPTError, DataError
from affectgpt.core.figures import COLOURS, new_figure, short, svg
from affectgpt.core.files import parse_json
from affectgpt.core.runtime import logger
from affectgpt.core.types import CLIP_SECONDS, SAMPLE_RATE, SOUND_SUFFIXES, Modality
from affectgpt.inference.predictor import ReadClip
from affectgpt.media.audio import clip_starts, read_wave
from affectgpt.media.encode import jpeg_of
from affectgpt.media.video import sample_faces
from affectgpt.processing.modes import get_mode
from affectgpt.processing.questions import render_question
from affectgpt.serve.api import without_paths
from affectgpt.serve.service import TOY_PARAMETERS, Choice, PreparedQuestion, Question, Service

if TYPE_CHECKING:
    import numpy as np

    from affectgpt.evaluation.lexicon import Wheel

UPLOAD = "/gradio_api/upload"
_CALL = "/gradio_api/queue/join"
_FILE = "/gradio_api/file="
# Gradio's addresses that the page needs; all others (proxies, stored runs, component servers, …) do not exist here.
_ADDRESSES = (
    "/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/startup-events", "/gradio_api/startup-events",
    UPLOAD, "/gradio_api/upload_progress", _CALL, "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset",
    "/gradio_api/info", "/gradio_api/app_id",
)  # fmt: skip
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")

_LABELS, _DESCRIPTION, _OWN = "Labels", "Description", "Own question"
_FIRST = "most prominent"
_MAX_TEXT = 2000  # characters
_FACE_PIXELS = 112
_FRAME_PIXELS = 320
_KEEP_SECONDS = 15 * 60  # an upload stays for another question
_SWEEP_SECONDS = 60
_CONCURRENT = 8  # questions of pages that are answered at once
_CAMERA = {"video": {"width": {"ideal": 1280}, "height": {"ideal": 720}, "frameRate": {"ideal": 30}}}
_WAVE_BINS = 600
_GREY = "#8390a2"  # is read on white and on black
_PALE = "#8a94a355"

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


@dataclass(frozen=True)
class MountedPage:
    """Requests that the page answers. ``functions``: number → how many inputs it takes."""

    upload_folder: Path
    functions: Mapping[int, int]

    def has_address(self, path: str) -> bool:
        """True for what the page needs of gradio's addresses, and for files that were uploaded."""
        if path.startswith(_FILE):
            return self._is_upload(path.removeprefix(_FILE))
        return path in _ADDRESSES or (path.startswith(_FOLDERS) and ".." not in path)

    def check_call(self, path: str, body: bytes) -> None:
        """Refuse calls of functions that the page has not, and of any file but uploads: gradio would copy and serve it.

        Raises HTTPException.
        """
        if path != _CALL:
            return
        try:
            call = parse_json(body)
        except ValueError:
            call = None
        if not isinstance(call, dict) or not isinstance(call.get("session_hash"), str):
            raise HTTPException(400, "the body must be a JSON object with fn_index, data and session_hash")
        stack = list(call.values())
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                if value.get("path") not in (None, "") and not self._is_upload(value["path"]):
                    raise HTTPException(403, "a request may name files only that were uploaded")
                stack += value.values()
            elif isinstance(value, list):
                stack += value
        number, data = call.get("fn_index"), call.get("data")
        if type(number) is not int or not isinstance(data, list) or self.functions.get(number) != len(data):
            raise HTTPException(400, "the page has no such function (fn_index, data)")

    def upload_bytes(self) -> int:
        """Bytes of all uploads that are there."""
        total = 0
        for path in self.upload_folder.rglob("*"):
            with suppress(OSError):  # removed meanwhile
                total += path.lstat().st_size
        return total

    def _is_upload(self, path: Any) -> bool:
        """True for a file below the folder of uploads, wherever links lead."""
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.upload_folder)
        except (OSError, RuntimeError, TypeError, ValueError):  # too long, a loop of links, no string, a null byte
            return False


def add_page(app: Any, service: Service, *, examples: Sequence[tuple[Path, str]] = ()) -> MountedPage:
    """Mount the page at ``/``. ``examples``: clips and what is said in them.

    Sets gradio's environment: no analytics, uploads below the service's private folder.
    """
    folder = service.folders.root.resolve() / "page"
    folder.mkdir(mode=0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    import gradio as gr

    blocks = _blocks(gr, service, examples)
    # Gradio's default theme with the fonts of the reader's system: its own come from a font server.
    sans = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    theme = gr.themes.Default(primary_hue="blue", font=sans, font_mono=["ui-monospace", "Consolas", "monospace"])
    gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, show_error=False, ssr_mode=False, pwa=False,
        enable_monitoring=False, mcp_server=False, max_file_size=int(service.settings.megabytes * 2**20),
        theme=theme, head=f"<style>{_CSS}</style>",  # css= is for what is inside of blocks only
    )  # fmt: skip
    # Until this is set, gradio lets a call name any file of this machine, and serves it; launch() sets it, mounting
    # does not. MountedPage refuses such calls before.
    blocks.has_launched = True
    return MountedPage(folder, {number: len(function.inputs) for number, function in blocks.fns.items()})


def _blocks(gr: Any, service: Service, examples: Sequence[tuple[Path, str]]) -> Any:
    parameters = sum(p.numel() for p in service.session.model.parameters())
    title = f"AffectGPT · {service.model}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_SWEEP_SECONDS, _KEEP_SECONDS)) as blocks:
        gr.Markdown(
            f"# AffectGPT\nWhat does a person in a clip express? Model **{html.escape(service.model)}**, input mode "
            f"`{service.session.mode}`. The answer names what an expression suggests, not what somebody feels."
        )
        if parameters < TOY_PARAMETERS:
            gr.HTML(
                f'<div class="ag-note" role="note" id="ag-toy"><b>A toy is running.</b> This model has {parameters:,} '
                "parameters and was trained on synthetic faces and voices (<code>make demo</code>), or nothing at "
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
                    label="What is said", lines=1, max_length=_MAX_TEXT, elem_id="ag-subtitle",
                    placeholder="empty: heard by speech recognition" if heard else "empty: nothing",
                )  # fmt: skip
                asked = gr.Radio([_LABELS, _DESCRIPTION, _OWN], value=_LABELS, label="Question", elem_id="ag-question")
                own = gr.Textbox(label="Your question", visible=False, max_length=_MAX_TEXT, elem_id="ag-own")
                person = gr.Radio([_FIRST], value=_FIRST, label="Whose face", visible=False, elem_id="ag-person")
                ask = gr.Button("Ask", variant="primary", elem_id="ag-ask")
                if examples:
                    gr.Examples(
                        [[str(path), said] for path, said in examples], inputs=[video, subtitle],
                        label="Synthetic clips to try", cache_examples=False, examples_per_page=3,
                        api_visibility="private",
                    )  # fmt: skip
            with gr.Column(scale=7, min_width=260):
                answer = gr.HTML(_muted("The answer comes here."), elem_id="ag-answer")
                wheel = gr.HTML("", elem_id="ag-wheel", elem_classes="ag-wheel")
                download = gr.HTML("", elem_id="ag-json", elem_classes="ag-json")
                with gr.Accordion("What the model saw and heard", open=True):
                    seen = gr.HTML(_muted("Faces, frames and sound of the clip."), elem_id="ag-seen")

        def show_own(chosen: str) -> Any:
            return gr.update(visible=chosen == _OWN)

        def forget() -> Any:
            return gr.update(choices=[_FIRST], value=_FIRST, visible=False)

        def run(clip: Any, said: str, kind: str, text: str, who: str | None) -> Iterator[dict[Any, Any]]:
            for update in _answer_updates(service, clip, said, kind, text, who):
                people = update.pop("people", None)
                components = {"answer": answer, "wheel": wheel, "download": download, "seen": seen}
                shown: dict[Any, Any] = {components[name]: value for name, value in update.items()}
                if people is not None:
                    choices = [(_FIRST, _FIRST), *((where, str(i)) for i, where in enumerate(people))]
                    shown[person] = gr.update(choices=choices, visible=len(people) > 1)
                yield shown

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked.change(show_own, asked, own, concurrency_limit=None, **hidden)
        video.change(forget, None, person, concurrency_limit=None, **hidden)
        ask.click(
            run, [video, subtitle, asked, own, person], [answer, wheel, download, seen, person],
            concurrency_limit=_CONCURRENT, **hidden,
        )  # fmt: skip
    for function in blocks.fns.values():  # the examples' too; what fails in the queue is told in the page's stream
        function.queue = True
    blocks.queue(max_size=service.settings.waiting, api_open=False)
    return blocks


def _answer_updates(
    service: Service, clip: Any, said: str, kind: str, text: str, who: str | None
) -> Iterator[dict[str, Any]]:
    """HTML of the page's parts, step by step. Nothing of an error but its message gets there."""
    yield {"answer": _muted("Reading the clip …"), "wheel": "", "download": "", "seen": ""}
    prepared: PreparedQuestion | None = None
    try:
        said, text = (said or "").strip(), (text or "").strip()
        if kind == _OWN and not text:
            raise DataError("type your question, or choose another one")
        if not clip and set(get_mode(service.session.mode).media) - {Modality.AUDIO}:
            raise DataError("give a clip first: drop a video, record one, or take one of the synthetic clips")
        question = Question(
            video=Path(clip) if clip else None, subtitle=said[:_MAX_TEXT] or None,
            text={_DESCRIPTION: render_question("description"), _OWN: text[:_MAX_TEXT]}.get(kind),
            person=None if who in (None, _FIRST) else str(who),
        )  # fmt: skip
        with service.admitted():
            end = time.monotonic() + service.settings.request_timeout
            seen: list[str] = []
            future = service.read(question, inspect=lambda *read: seen.append(_inputs_html(service, *read)))
            prepared = future.result(service.settings.request_timeout)
            yield {
                "answer": _muted("Asking the model …"), "seen": seen[0],
                "people": [someone.where for someone in prepared.clip.people],
            }  # fmt: skip
            texts: queue.Queue[str | None] = queue.Queue()  # None: there is an answer, or an error
            service.answer(prepared, lambda _, text: texts.put(text))
            (choice,) = prepared.choices
            choice.row.answer.add_done_callback(lambda _: texts.put(None))
            so_far = ""
            while (piece := texts.get(timeout=max(end - time.monotonic(), 0.01))) is not None:
                so_far += piece
                yield {"answer": f'<div class="ag-answer" aria-live="polite">{html.escape(so_far)}▌</div>'}
            yield _answer_html(service, prepared, choice)
    except (queue.Empty, TimeoutError):
        yield {"answer": _problem("The answer took too long.")}
    except AffectGPTError as error:
        yield {"answer": _problem(without_paths(error))}
    except Exception:
        logger.exception("the page's request failed")
        yield {"answer": _problem("The server failed; its log says why.")}
    finally:
        if prepared is not None:
            prepared.cancel()


def _answer_html(service: Service, prepared: PreparedQuestion, choice: Choice) -> dict[str, Any]:
    """The answer with its labels and notes, the labels on a wheel, and all of it as a JSON file."""
    answer = choice.row.answer.result().text
    explained = service.explained(prepared, choice)
    wheel = service.lexicon.wheels[0]
    marked = {label: group for label, groups in explained["groups"].items() if (group := groups.get(wheel.name))}
    parts = [f'<div class="ag-answer">{html.escape(answer) or _muted("(an empty answer)")}</div>']
    for label in explained["labels"]:
        group = f" <small>{html.escape(marked[label])}</small>" if label in marked else ""
        parts.append(f'<span class="ag-label">{html.escape(label)}{group}</span>')
    parts += [f'<div class="ag-note" role="note">{html.escape(note)}</div>' for note in explained["notes"]]
    alt = f"Labels on {wheel.name}'s wheel: " + ", ".join(f"{k} in {v}" for k, v in marked.items())
    record = {"model": service.model, "answer": answer, **explained}
    data = base64.b64encode(json.dumps(record, ensure_ascii=False, indent=1).encode()).decode()
    return {
        "answer": "".join(parts),
        "wheel": _plot(_wheel_figure(wheel, marked), alt=alt) if marked else "",
        "download": f'<a download="affectgpt.json" href="data:application/json;base64,{data}">Download as JSON</a>',
    }


def _inputs_html(service: Service, clip: ReadClip, video: Path | None, audio: Path | None) -> str:
    """Faces, people, frames, sound and subtitle of a clip, while its files are there."""
    parts = []
    processor = service.session.processor
    media = get_mode(service.session.mode).media
    if clip.crops is not None:
        faces = sample_faces(clip.crops, n_frames=processor.n_frames, size=_FACE_PIXELS)
        parts += [f"<h4>The {len(faces)} faces</h4>", _strip((f"face {i + 1}", face) for i, face in enumerate(faces))]
    if len(clip.people) > 1:
        people = ((someone.where, someone.crop) for someone in clip.people)
        parts += ["<h4>Who is there</h4>", _strip(people, captions=True)]
    if video is not None and video.suffix.lower() not in SOUND_SUFFIXES:
        read, _ = service.decoder.native_frames(
            video, n_frames=processor.n_frames, start=0, count=processor.n_frames, longest_side=_FRAME_PIXELS
        )
        frames = [read[min(i, len(read) - 1)] for i in range(processor.n_frames)]  # as a short clip is read
        title = f"The {len(frames)} frames" if Modality.FRAME in media else "Frames (this model sees the face alone)"
        parts += [f"<h4>{title}</h4>", _strip((f"frame {i + 1}", frame) for i, frame in enumerate(frames))]
    sound = audio or video
    if sound is not None:
        # A sound file is plain samples by now, see RequestMedia.save.
        is_wave = sound.suffix.lower() in SOUND_SUFFIXES
        samples = read_wave(sound) if is_wave else service.decoder.sound(sound, limits=service.settings.media)
        if samples is None:
            parts.append("<p>The clip has no sound.</p>")
        else:
            heard = Modality.AUDIO in media
            title = "The sound, and the eight clips of two seconds that are heard" if heard else "The sound (not heard)"
            figure = _wave_figure(samples, spacing=processor.audio_clip_spacing)
            parts += [f"<h4>{title}</h4>", _plot(figure, alt=f"Sound of {len(samples) / SAMPLE_RATE:.1f} seconds")]
    if clip.sample.subtitle:
        parts.append(f"<p>What is said: “{html.escape(clip.sample.subtitle)}”</p>")
    return f'<div class="ag-seen">{"".join(parts)}</div>'


def _strip(pictures: Iterable[tuple[str, np.ndarray]], *, captions: bool = False) -> str:
    """Named pictures uint8 ``[H, W, 3]`` RGB side by side; they wrap where the page is narrow.

    They stand in the page itself: pictures of gradio's own components are files that others could ask for.
    """
    cells = []
    for name, picture in pictures:
        data = base64.b64encode(jpeg_of(picture)).decode()
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if captions else ""
        cells.append(f'<figure><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}">{caption}</figure>')
    return f'<div class="ag-strip">{"".join(cells)}</div>'


def _plot(figure: Any, *, alt: str) -> str:
    """A figure as an SVG picture of its own, whose ids cannot clash with those of another one."""
    data = base64.b64encode(svg(figure).encode()).decode()
    return f'<img class="ag-plot" alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def _wave_figure(samples: np.ndarray, *, spacing: int) -> Any:
    """Mono samples at 16 kHz ``[n]``, and above them the eight clips of two seconds that are heard."""
    import numpy as np

    figure, axes = _transparent_figure(8.0, 2.3)
    end = max(len(samples) / SAMPLE_RATE, CLIP_SECONDS)
    edges = np.linspace(0, len(samples), min(_WAVE_BINS, max(len(samples), 1)) + 1).astype(int)
    bins = [samples[a:b] for a, b in itertools.pairwise(edges) if b > a]
    low, high = np.array([(part.min(), part.max()) for part in bins]).T / max(1e-3, float(np.abs(samples).max()))
    axes.fill_between(np.linspace(0, len(samples) / SAMPLE_RATE, len(bins)), low, high, color=COLOURS[0], lw=0.4)
    for i, start in enumerate(clip_starts(len(samples), spacing=spacing)):
        first, row = start / SAMPLE_RATE, 1.15 + 0.17 * i  # a row for each: clips overlap in most recordings
        axes.hlines(row, first, min(first + CLIP_SECONDS, end), color=COLOURS[1], lw=2.5)
        axes.text(first, row, f"{i + 1} ", ha="right", va="center", fontsize=6.5, color=_GREY)
    axes.set(xlim=(-0.03 * end, end), ylim=(-1.1, 2.5), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds", fontsize=8.5, color=_GREY)
    return figure


def _wheel_figure(wheel: Wheel, marked: Mapping[str, str]) -> Any:
    """Inner and middle ring of a wheel, with the sectors of labels coloured. ``marked``: label → inner word."""
    middle_words: dict[str, dict[str, None]] = {}  # inner word → its middle words, in the order of the rows
    for inner, middle, _ in wheel.rows:
        middle_words.setdefault(inner, {})[middle] = None
    colours = [
        COLOURS[i % len(COLOURS)] if inner in marked.values() else "none" for i, inner in enumerate(middle_words)
    ]
    inner_ring = [(inner, 1.0, colour) for inner, colour in zip(middle_words, colours, strict=True)]
    middle_ring = [
        (middle, 1 / len(words), colour)
        for words, colour in zip(middle_words.values(), colours, strict=True)
        for middle in words
    ]
    figure, axes = _transparent_figure(5.2, 4.0)
    for sectors, radius, width, size, alpha in (
        (inner_ring, 0.62, 0.46, 7.6, 0.9),
        (middle_ring, 0.98, 0.36, 5.8, 0.45),
    ):
        wedges, texts = axes.pie(
            [share for _, share, _ in sectors], radius=radius, labels=[short(word) for word, _, _ in sectors],
            labeldistance=(radius - width / 2) / radius, rotatelabels=True, colors=[colour for _, _, colour in sectors],
            wedgeprops={"width": width, "edgecolor": _GREY, "lw": 0.6}, textprops={"fontsize": size},
        )  # fmt: skip
        for wedge, text, (_, _, colour) in zip(wedges, texts, sectors, strict=True):
            if colour != "none":
                wedge.set_alpha(alpha)
            text.set(ha="center", va="center", color="white" if colour != "none" and alpha > 0.5 else _GREY)
    for i, (inner, colour) in enumerate(zip(middle_words, colours, strict=True)):
        labels = [short(label) for label, group in marked.items() if group == inner][:4]
        angle = 2 * math.pi * (i + 0.5) / len(middle_words)
        x, y = 1.06 * math.cos(angle), 1.06 * math.sin(angle)
        side = "left" if x > 0.25 else "right" if x < -0.25 else "center"
        axes.text(x, y, "\n".join(labels), ha=side, va="center", fontsize=9, color=colour, fontweight="bold")
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.12, 1.12))
    return figure


def _transparent_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure for dark and for light pages."""
    figure, axes = new_figure(width, height)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines["bottom"].set_color(_PALE)
    axes.tick_params(colors=_GREY)
    return figure, axes


def _muted(text: str) -> str:
    return f'<div class="ag-muted">{text}</div>'


def _problem(words: str) -> str:
    return f'<div class="ag-note ag-error" role="alert">{html.escape(words)}</div>'
