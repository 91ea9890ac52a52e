"""The page itself, in gradio: uploads, stickers, answers, downloads; and the program that serves it."""

from __future__ import annotations

import concurrent.futures
import importlib
import pathlib
import tempfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from demo import answers
from input_pipeline.errors import UserError
from pin_jax.runtime import files, reporting
from pin_jax.runtime.processes import launch

TITLE = "Where? PIN and GEM, side by side"
ABOUT = """Frozen models that learned from captions know *what* is in a picture. **PIN** adds one learned map, and the
language model writes boxes; **GEM** reads heat maps out of a frozen CLIP. Give a photo or drop stickers on a
background, write names, and compare."""
EXAMPLES = (
    (0, (("cat", 0.3, 0.35, 0.4), ("rocket", 0.72, 0.7, 0.35)), "cat, rocket"),
    (1, (("pizza", 0.65, 0.3, 0.45), ("dog", 0.25, 0.7, 0.4)), "pizza, dog"),
    (4, (("guitar", 0.5, 0.5, 0.6),), "guitar"),
)


def gradio() -> Any:
    """The package.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("the web page needs gradio: pip install gradio, or pip install -e '.[demo]'") from error


def run(config: ConfigDict, workdir: Any) -> None:
    """Serves the page until it is interrupted."""
    launch.alone("the web page")
    files.needs_local(workdir, "the web page")
    page = build(config)
    reporting.plan(
        "the web page",
        {"models": ", ".join(answers.choices()), "address": f"http://{config.host}:{config.port}",
         "at most": f"{config.most_megapixels} megapixels, {config.most_megabytes} MB, {config.most_names} names,"
         f" {config.queue} in the queue, {config.timeout} s"},
    )  # fmt: skip
    page.launch(**launch_options(config), prevent_thread_lock=False)


def launch_options(config: ConfigDict) -> dict[str, Any]:
    """How the page is served: on this machine alone by default; of the disk nothing but its own answers."""
    return {
        "server_name": config.host, "server_port": config.port, "share": False, "quiet": True, "allowed_paths": [],
        "max_file_size": f"{config.most_megabytes}mb", "show_error": True, "footer_links": [], "ssr_mode": False,
        "enable_monitoring": False, "mcp_server": False,
    }  # fmt: skip


def build(config: ConfigDict) -> Any:
    """The page as gradio's Blocks."""
    gr = gradio()
    models = answers.Models(answers.choices(), {name: config.insert for name in answers.choices() if config.insert})
    pool = concurrent.futures.ThreadPoolExecutor(config.parallel)
    most_pixels = config.most_megapixels * 1_000_000
    kept = pathlib.Path(tempfile.mkdtemp(prefix="pin_gem_page_"))

    def told(function):
        """A function of the page whose user errors are messages on it."""

        def inner(*given):
            try:
                return pool.submit(function, *given).result(timeout=config.timeout)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error
            except concurrent.futures.TimeoutError as error:
                said = f"no answer within {config.timeout} s: try fewer names, or again in a moment"
                raise gr.Error(said, print_exception=False) from error

        return inner

    @told
    def upload(path: str | None) -> Any:
        return None if path is None else np.asarray(answers.photo_of(path, most_pixels))

    @told
    def ask(model: str, picture: np.ndarray | None, text: str) -> tuple[Any, ...]:
        if picture is None:
            raise UserError("no picture: upload a photo, choose an example, or drop a sticker")
        names = answers.names_of(text, config.most_names)
        found = answers.answer(models, model, Image.fromarray(picture), names)
        rows = answers.panels(found)
        folder = pathlib.Path(tempfile.mkdtemp(dir=kept))
        (folder / "boxes.json").write_text(answers.coco(found), "utf-8")
        (folder / "answers.png").write_bytes(answers.sheet(rows))
        table = [
            [with_pin.name, *(round(float(v)) for v in with_pin.box), round(float(with_pin.score), 2)]
            for with_pin in found.pin
        ]
        return rows, table, str(folder / "boxes.json"), str(folder / "answers.png")

    def drop(background: int, dropped: list, name: str, share: float, at: Any) -> tuple[Any, ...]:
        x, y = (v / 480 for v in at.index)
        dropped = [*dropped, (name, x, y, share)][-config.most_stickers :]
        picture = np.asarray(answers.compose(background, dropped))
        return dropped, picture, picture, ", ".join(dict.fromkeys(name for name, *_ in dropped))

    def fresh(background: int) -> tuple[Any, ...]:
        picture = np.asarray(answers.compose(background, ()))
        return [], picture, picture

    def example(k: int) -> tuple[Any, ...]:
        background, dropped, text = EXAMPLES[k]
        picture = np.asarray(answers.compose(background, dropped))
        return picture, picture, text

    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        picture, dropped = gr.State(None), gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                model = gr.Dropdown(list(answers.choices()), label="Model", value=next(iter(answers.choices())))
                with gr.Tab("Photo"):
                    file = gr.File(
                        label="JPEG, PNG or WebP", type="filepath", file_types=list(answers.SUFFIXES), elem_id="photo"
                    )
                    with gr.Row():
                        buttons = [gr.Button(text, size="sm") for *_, text in EXAMPLES]
                with gr.Tab("Stickers"):
                    background = gr.Slider(0, answers.background_count() - 1, 0, step=1, label="Background")
                    sticker = gr.Dropdown(sorted(answers.stickers()), value="cat", label="Sticker")
                    share = gr.Slider(0.15, 0.8, 0.4, label="Size")
                    board = gr.Image(
                        np.asarray(answers.compose(0, ())), label="Click where it goes", height=480, width=480,
                        interactive=False, buttons=[], elem_id="board",
                    )  # fmt: skip
                    clear = gr.Button("Take all off", size="sm")
                shown = gr.Image(
                    label="The picture that is asked about", interactive=False, buttons=[], elem_id="shown"
                )
                names = gr.Textbox(label="Names, between commas", placeholder="cat, red apple", elem_id="names")
                button = gr.Button("Where?", variant="primary", elem_id="ask")
            with gr.Column(scale=2):
                gallery = gr.Gallery(label="Answers", columns=3, height=900, object_fit="contain", elem_id="answers")
                table = gr.Dataframe(
                    headers=["name", "x1", "y1", "x2", "y2", "score"], label="PIN's boxes, in pixels", elem_id="boxes",
                    interactive=False,
                )  # fmt: skip
                with gr.Row():
                    as_json = gr.DownloadButton("Boxes (COCO JSON)", elem_id="json")
                    as_png = gr.DownloadButton("All answers (PNG)", elem_id="png")
        file.change(upload, file, picture, concurrency_limit=config.parallel).success(lambda p: p, picture, shown)
        for k, one in enumerate(buttons):
            one.click(lambda k=k: example(k), None, [picture, shown, names])

        def clicked(background: int, dropped: list, name: str, share: float, at: Any) -> tuple[Any, ...]:
            return drop(background, dropped, name, share, at)

        clicked.__annotations__["at"] = gr.SelectData  # by which gradio knows what to give; it is not imported above
        board.select(clicked, [background, dropped, sticker, share], [dropped, board, picture, names]).then(
            lambda p: p, picture, shown
        )
        for trigger in (background.release, clear.click):
            trigger(fresh, background, [dropped, board, picture])
        where = [model, picture, names]
        for trigger in (button.click, names.submit):
            trigger(ask, where, [gallery, table, as_json, as_png], concurrency_limit=config.parallel)
    page.queue(max_size=config.queue, default_concurrency_limit=config.parallel, api_open=False)
    return page
