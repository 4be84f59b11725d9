"""`llvq passes`: what the compiler does, pass by pass, and which rewrite broke it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llvq.cli import options

if TYPE_CHECKING:
    from llvq.passes import Pass


class PassCommands(TyperGroup):
    """`llvq passes NAME` is `llvq passes explain NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["explain", *args])


passes_app = typer.Typer(cls=PassCommands, rich_markup_mode="rich")


@passes_app.callback(invoke_without_command=True)
def table(context: typer.Context, json: options.Json = False) -> None:
    """List the passes, explain one, or find the rewrite that breaks a model.

    \b
      llvq passes
      llvq passes fuse-linear
      llvq passes bisect model_bf16.pt -- python check.py {box}
    """
    if context.invoked_subcommand is not None:
        return
    from llvq.cli.table import print_json, print_table
    from llvq.passes import PIPELINE

    rows = [_row(number, step) for number, step in enumerate(PIPELINE, 1)]
    if json:
        print_json(rows)
    else:
        print_table("passes", tuple(rows[0]), [tuple(row.values()) for row in rows], left=7)


def _row(number: int, step: Pass) -> dict[str, Any]:
    return {
        "#": number,
        "name": step.name,
        "level": step.reaches.name.lower(),
        "numerics": step.numerics,
        "can be disabled": "yes" if step.optional else "no",
        "obeys --limit": "no" if step.whole else "yes",
        "what it does": step.summary,
    }


@passes_app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A pass.")], json: options.Json = False
) -> None:
    """Explain one pass: what it does, and its rules.

    \b
      llvq passes explain fuse-linear
      llvq passes fuse-linear
    """
    import sys

    from llvq.cli.table import print_json
    from llvq.passes import PIPELINE
    from llvq.recipe import unknown

    found = {step.name: step for step in PIPELINE}.get(name)
    if found is None:
        raise unknown("pass", name, [step.name for step in PIPELINE])
    module = sys.modules[found.function.__module__]
    rules = [
        {"name": rule.name, "site": _sentence(rule.anchor), "unless": _sentence(rule.check)}
        for rule in getattr(module, "RULES", ())
    ]
    row = _row([step.name for step in PIPELINE].index(name) + 1, found)
    if json:
        print_json({**row, "documentation": module.__doc__, "rules": rules})
        return
    print((module.__doc__ or "").strip())
    keys = ("level", "numerics", "can be disabled", "obeys --limit")
    print("\n" + "\n".join(f"{key + ':':<17} {row[key]}" for key in keys))
    for rule in rules:
        print(f"rule {rule['name']}" + (f": {rule['site']}" if rule["site"] else ""))


def _sentence(function: Any) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]


@passes_app.command()
def bisect(
    model: options.ModelPath,
    command: Annotated[
        list[str], typer.Argument(help="After `--`. Exit code 0 means good.", metavar="-- COMMAND")
    ],
    recipe: options.RecipeName = "longlive2-nvfp4",
    vae: options.VaePath = None,
    text_encoder: options.TextEncoderPath = None,
    tokenizer: options.TokenizerPath = None,
    num_heads: options.NumHeads = None,
    use_ema: options.UseEma = False,
    layout: options.Layout = None,
    height: options.Height = None,
    width: options.Width = None,
    disable: options.Disable = None,
    json: options.Json = False,
) -> None:
    """Find the first rewrite that makes COMMAND fail, by binary search over `--limit`.

    Each trial quantizes MODEL with only the first N rewrites and runs COMMAND, with {program} and
    {box} replaced by the paths of what was written.

    \b
      llvq passes bisect model_bf16.pt -- python check.py {program}
      llvq passes bisect model_bf16.pt --height 480 --width 832 -- ./looks_right.sh {box}
    """
    from llvq.bisect import bisect as search
    from llvq.cli.bisect_trials import Trials, show_culprit
    from llvq.passes import PIPELINE, Options
    from llvq.passes.manager import check_names
    from llvq.recipe import load_recipe

    chosen, disabled = load_recipe(recipe), tuple(disable or ())
    check_names(PIPELINE, Options(disable=disabled))
    opened = options.open_video_model(
        model,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        num_heads=num_heads,
        use_ema=use_ema,
        size=options.video_size(height, width),
        layout=layout,
    )
    trials = Trials(opened, chosen, disabled, command)
    show_culprit(search(trials.compile_at, trials.is_good, trials.told), as_json=json)
