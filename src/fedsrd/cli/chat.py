"""fedsrd chat and fedsrd merge: what to do with what was trained."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import Quiet, app, check_out, fail
from fedsrd.cli.common import console as console_of

Target = Annotated[str, typer.Argument(help="A run's folder, or an adapter's.")]
Client = Annotated[
    str | None, typer.Option("--client", help="Whose adapter, where a run ends with one for every client.")
]


@app.command()
def chat(
    target: Annotated[str, typer.Argument(help="A run's folder, an adapter's, or a model.")],
    question: Annotated[str | None, typer.Argument(help="Ask this and end; without it, ask in turns.")] = None,
    client: Client = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="The base model's answer beside it.")] = True,
    system: Annotated[str, typer.Option("--system", help="A system's turn to begin with.")] = "",
    most: Annotated[int, typer.Option("--max-tokens", min=1, max=1 << 16, help="Of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=10.0, help="0: the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=1 << 31, help="With a temperature.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a question.")] = False,
    quiet: Quiet = False,
) -> None:
    """Talk to what was trained, with the base model's answers beside it."""
    subject = _subject(target, client)
    console = console_of(as_json, quiet)
    console.print(f"Loading {subject.name}", highlight=False)
    from fedsrd.data.prompt import style_of
    from fedsrd.evaluation import chat as chatting
    from fedsrd.evaluation.model_loader import ModelLoader

    loaded = ModelLoader(device).load(subject)
    style: Any = subject.prompt or style_of(loaded.tokenizer)
    names = [chatting.ADAPTED] if subject.adapter is not None else [chatting.BASE]
    if base and subject.adapter is not None:
        names.insert(0, chatting.BASE)
    talk = chatting.Chat(loaded, style, names, system=system, most=most, temperature=temperature, seed=seed)
    for asked in _questions(question, console, style):
        if asked == "/reset":
            talk.reset()
            continue
        answers = talk.ask(asked)
        if as_json:
            typer.echo(json.dumps({"question": asked, "answers": answers}, ensure_ascii=False))
        else:
            _show(console, answers)


@app.command()
def merge(
    target: Target,
    out: Annotated[Path, typer.Argument(help="A new folder for the merged model.")],
    client: Client = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bfloat16, float16 or float32; default: the run's.")
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option("--gguf", help="Also as one GGUF file, by llama.cpp's convert-hf-to-gguf.")
    ] = None,
) -> None:
    """Write an adapter into its base model: one folder of safetensors that transformers, vLLM and others load."""
    known = ("bfloat16", "float16", "float32")
    if dtype is not None and dtype not in known:
        fail(f"--dtype {dtype!r}: expected one of {', '.join(known)}", 2)
    check_out(out)
    subject = _subject(target, client)
    console = console_of()
    from fedsrd.evaluation import merge as merging

    merging.check_place(out)
    if gguf is not None:
        merging.converter(gguf)
    merging.merge(subject, out, dtype, lambda text: console.print(text, highlight=False))
    console.print(f"{out}: AutoModelForCausalLM.from_pretrained({str(out)!r})", highlight=False, soft_wrap=True)
    if gguf is not None:
        console.print("Converting to GGUF")
        merging.to_gguf(out, gguf, dtype or subject.dtype or "bfloat16")
        console.print(f"{gguf}: llama-cli -m {gguf}", highlight=False, soft_wrap=True)


def _subject(target: str, client: str | None) -> Any:
    from fedsrd.evaluation import subjects

    everybody = subjects.resolve([target])
    names = {subject.adapter.name: subject for subject in everybody if subject.adapter is not None}
    found = everybody if client is None else [names[client]] if client in names else []
    if len(found) != 1:
        fail(f"{target} has an adapter for each of {', '.join(names)}: choose one with --client", 2)
    return found[0]


def _questions(question: str | None, console: Any, style: str) -> Iterator[str]:
    """The one question, those of a pipe, or those that somebody types."""
    if question is not None:
        yield question
        return
    typed = sys.stdin.isatty()
    if typed:
        history = (
            "" if style == "chat" else f" This model was trained with {style!r} prompts: each question stands alone."
        )
        console.print(f"/reset forgets, /quit ends.{history}", highlight=False)
    while True:
        try:
            line = input("> " if typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line:
            yield line


def _show(console: Any, answers: dict[str, str]) -> None:
    """Side by side where there is room, else one below the other."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fedsrd.report.screen import styled
    from fedsrd.text import printable

    texts = {name: Text(printable(answer)) for name, answer in answers.items()}
    if len(texts) > 1 and console.width >= 80:
        table = Table(box=box.SIMPLE, expand=True, padding=(0, 1, 0, 0))
        for name in texts:
            table.add_column(name, ratio=1)
        table.add_row(*texts.values())
        console.print(table)
        return
    for name, text in texts.items():
        if len(texts) > 1:
            console.print(styled("bold", name))
        console.print(text)
