"""The page, by Gradio: its forms become requests, and what is played is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from unidiff_core.cli.page.play import Player, Refused
from unidiff_core.cli.page.request import GENERATE, GIVEN, IGNORED, ROLES, Form, Request, sample_request
from unidiff_core.cli.page.shown import STYLE, html_of
from unidiff_core.foundation.plugin import load_plugins

SETTINGS = ("num", "steps", "solver", "guidance", "seed")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""Fonts of the machine: those of the theme are fetched from elsewhere."""
MOST = 64
"""Samples that are asked for at once, at most: all of them stand on one page."""
NO_LINKS: list[Any] = []


def widget(kind: str, label: str, **more: Any) -> Any:
    """A component whose value is what ``--given`` takes: text, or the path of a file.

    Args:
        kind: `Codec.widget`.
        label: its name on the page.
        **more: for the component.
    """
    match kind:
        case "text":
            return gr.Textbox(label=label, lines=1, max_lines=4, **more)
        case "image":
            return gr.Image(
                label=label, type="filepath", format="png", sources=["upload", "clipboard"], height=220, **more
            )
        case "audio":
            return gr.Audio(label=label, type="filepath", format="wav", sources=["upload", "microphone"], **more)
        case _:
            return gr.File(label=label, type="filepath", **more)


def page(player: Player) -> gr.Blocks:
    """The page of a model, to be launched."""
    with gr.Blocks(title=f"unidiffuser {player.folder}", analytics_enabled=False) as blocks:
        told = "What is generated is sampled, given what is given; the same call is written under the result."
        gr.Markdown(f"# {escape(player.folder)}\n{told}")
        with gr.Tab("Sample"):
            _sample_tab(player)
    blocks.queue(default_concurrency_limit=1)
    return blocks


def launch(player: Player, host: str, port: int, **more: Any) -> Any:
    """Serve the page; nothing is asked of any other machine.

    Args:
        player: what is served.
        host: address to listen at.
        port: of it.
        **more: of Gradio's ``launch``.
    """
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "share": False,
        "theme": THEME,
        "css": STYLE,
        "footer_links": NO_LINKS,
        "max_file_size": "64mb",
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "quiet": True,
    }
    return page(player).launch(**options | more)


@dataclass(frozen=True)
class _Output:
    """Where a result goes."""

    html: Any
    line: Any
    python: Any

    @classmethod
    def made(cls, name: str) -> _Output:
        html = gr.HTML(elem_id=f"{name}-result", min_height=60)
        look: dict[str, Any] = {"lines": 1, "wrap_lines": True, "show_line_numbers": False, "elem_classes": "call"}
        with gr.Accordion("The same call", open=True):
            line = gr.Code(label="on the command line", language="shell", elem_id=f"{name}-line", **look)
            python = gr.Code(label="in Python", language="python", elem_id=f"{name}-python", **look)
        return cls(html, line, python)


def _played(player: Player, ask: Callable[..., Request]) -> Callable[..., Iterator[Any]]:
    """A function of the form's values that plays what they ask for; what is wrong is told in the command's words."""

    def play(*values: Any) -> Iterator[Any]:
        try:
            request = ask(*values)
            player.check(request)
            lines = player.line(request), player.python(request)
            for view in player.play(request):
                yield html_of(view, {name: row.codec for name, row in player.model.modalities.items()}), *lines
        except (Refused, ValueError) as error:
            raise gr.Error(escape(str(error)), duration=None, title="Refused", print_exception=False) from error

    return play


def _wire(player: Player, name: str, ask: Callable[..., Request], inputs: Sequence[Any], output: _Output) -> None:
    with gr.Row():
        button = gr.Button("Sample", variant="primary", elem_id=f"{name}-run")
        stop = gr.Button("Stop", elem_id=f"{name}-stop")
    event = button.click(
        _played(player, ask),
        [*inputs],
        [output.html, output.line, output.python],
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=[output.html],
        api_name=name,
    )
    stop.click(None, None, None, cancels=[event], api_visibility="private")


def _settings(player: Player, *, num: bool = True) -> list[Any]:
    """Components of `SETTINGS`, which begin as the model says."""
    own = player.model.sampling
    registry = load_plugins()
    found = {row.process.solvers for row in player.model.modalities.values()}
    kinds = [kind for kind in found if kind is not None]
    known = sorted({solver for kind in kinds for solver in registry.of_kind(kind)})
    guidance = own.guidance if isinstance(own.guidance, int | float) else None
    solver = own.solver if isinstance(own.solver, str) else ""
    with gr.Row():
        rows = [gr.Number(4, label="samples", precision=0, minimum=1, maximum=MOST, min_width=90)] if num else []
        rows += [
            gr.Number(own.steps, label="steps", precision=0, min_width=90),
            gr.Dropdown(
                [("its own", ""), *((row, row) for row in known)], value=solver, label="solver",
                allow_custom_value=True, min_width=140,
            ),
            gr.Number(guidance, label="guidance", min_width=90),
            gr.Number(own.seed, label="seed", precision=0, min_width=90),
        ]  # fmt: skip
    return rows


def _modality(name: str, kind: str, role: str, tab: str) -> list[Any]:
    """Role, value and noise of a modality."""
    with gr.Group():
        roles = gr.Radio([*ROLES], value=role, label=name, elem_id=f"{tab}-{name}-role")
        value = widget(kind, f"{name} that is given", visible=role == GIVEN, elem_id=f"{tab}-{name}-value")
        noise = gr.Slider(
            0, 1, 0, step=0.05, label="held at the time (0 clean, 1 noise)", visible=role == GIVEN,
            elem_id=f"{tab}-{name}-noise",
        )  # fmt: skip

    def show(role: str) -> list[Any]:
        return [gr.update(visible=role == GIVEN)] * 2

    roles.change(show, roles, [value, noise], queue=False, show_progress="hidden", api_visibility="private")
    return [roles, value, noise]


def _forms(names: Sequence[str], values: Sequence[Any]) -> dict[str, Form]:
    """The first values of a form, three for each modality."""
    return {name: Form(values[3 * i], values[3 * i + 1], float(values[3 * i + 2] or 0)) for i, name in enumerate(names)}


def _sample_tab(player: Player) -> None:
    names = [*player.model.modalities]

    def ask(*values: Any) -> Request:
        return sample_request(_forms(names, values), dict(zip(SETTINGS, values[3 * len(names) :], strict=True)))

    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            inputs: list[Any] = []
            for i, (name, row) in enumerate(player.model.modalities.items()):
                inputs += _modality(name, row.codec.widget, GENERATE if i == 0 else IGNORED, "sample")
            inputs += _settings(player)
            buttons = gr.Column()
        with gr.Column(scale=3, min_width=320):
            output = _Output.made("sample")
        with buttons:
            _wire(player, "sample", ask, inputs, output)
