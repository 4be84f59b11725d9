"""`llvq encode`: prompts into a prompt cache, for boxes that have no text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options
from llvq.errors import SessionError

if TYPE_CHECKING:
    from llvq.runtime.embedder import Embedder
    from llvq.runtime.prompts import PromptTokens


def encode(
    box: Annotated[Path, typer.Argument(help="A box that has the text encoder.")],
    prompt_cache: Annotated[Path, typer.Option(metavar="DIR", help="Made if it is not there.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Repeatable.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file, one prompt per line.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Encode prompts into a cache, which `llvq run --prompt-cache` reads. Generates nothing.

    Each prompt is cached as it is and as a scene cut, so that it can be any shot of a video. What
    is cached already is not encoded again; Ctrl-C keeps what is done. Of the box, the text encoder
    alone is loaded.

    \b
      llvq encode model.llvq --prompt "a red kite over the sea" --prompt-cache prompts
      llvq encode model.llvq --prompts prompts.txt --prompt-cache prompts
    """
    from llvq.cli.table import note, print_fields, print_json
    from llvq.runtime.embedder import Embedder
    from llvq.runtime.generate import tokenize
    from llvq.runtime.load import open_runnable
    from llvq.runtime.shots import spellings

    given = list(dict.fromkeys([*(prompt or ()), *(read_prompts(prompts) if prompts else ())]))
    if not given:
        raise SessionError("no prompt was given", fix='pass --prompt "a red kite", or --prompts')
    opened = open_runnable(box)
    embedder = Embedder(opened, prompt_cache)
    prefix = embedder.facts.scene_cut_prefix
    texts = [text for item in given for text in spellings(item, prefix)]
    tokens = tokenize(embedder.facts, box, texts)
    for text, item in tokens.items():
        if item.truncated:
            note(f"note: longer than {item.ids.shape[1]} tokens, cut off: {text[:60]!r}...")
    _encode(embedder, tokens)
    for error in embedder.damaged:
        note(f"note: {error.what}, and was encoded again: {error.where}: {error.because}")
    counts = {"prompts": len(given), "entries": len(tokens), "encoded": embedder.encoded}
    if json:
        print_json({"prompt_cache": str(prompt_cache), "encoder": embedder.identity, **counts})
        return
    there = f"{embedder.encoded} encoded, {len(tokens) - embedder.encoded} were there"
    entries = f"{len(given)} prompts, {len(tokens)} entries: {there}"
    print_fields([(str(prompt_cache), entries), ("encoder", embedder.identity)])


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises SessionError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(
            f"{path.name} cannot be read",
            where=str(path),
            because=str(error),
            fix="pass a text file in UTF-8, one prompt per line",
        ) from error
    return [line for line in lines if line.strip()]


def _encode(embedder: Embedder, tokens: dict[str, PromptTokens]) -> None:
    """One after the other, each cached before the next is begun."""
    from llvq.cli.table import chunk_progress

    with chunk_progress() as bar:
        task = bar.add_task("prompts", total=len(tokens), speed="")
        for text, item in tokens.items():
            embedder.embed({text: item})
            bar.update(task, advance=1, speed=f"{embedder.encoded} encoded")
