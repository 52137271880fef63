"""The model card of an adapter: what it was trained on, how, at what cost and with what result; README.md for a hub."""

from collections.abc import Iterable
from pathlib import Path

from fedsrd import __version__
from fedsrd.places import is_public, shown
from fedsrd.recipe import DataSection, Recipe
from fedsrd.runs.promise import sentences
from fedsrd.runs.records import Summary
from fedsrd.training.options import TrainingOptions

_EMBEDDED = {"embedded:smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
"""Where an embedded model is from, and its licence."""


def card(recipe: Recipe, summary: Summary) -> str:
    """The card as Markdown with a hub's front matter.

    Names no place on anybody's disk: data that is not surely a public or embedded set (`places.is_public`) is called
    private.

    Args:
        recipe: of the run.
        summary: of the run.
    """
    from huggingface_hub import ModelCardData

    base, licence = _EMBEDDED.get(
        recipe.model.id, (recipe.model.id if is_public(recipe.model.id, "model") else None, None)
    )
    licence = recipe.model.license or licence
    public = [name for name in dict.fromkeys(_sources(recipe)) if not name.startswith("embedded:")]
    data = ModelCardData(
        base_model=base,
        license=licence,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "federated-learning", "fedsrd"],
        datasets=[name.partition(":")[0] for name in public] or None,
        ignore_metadata_errors=True,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {recipe.name}: a LoRA adapter trained by {summary.clients} clients together",
        _opening(recipe, summary, base),
        "## Use\n\n" + _snippet(base),
        "## Data\n\n" + _data(recipe),
        "## Training\n\n" + _training(recipe, summary),
        "## What was sent\n\n" + _bytes(summary),
        *(["## Privacy\n\n" + _privacy(promised)] if (promised := sentences(summary)) else []),
        "## Scores\n\n" + _scores(summary),
        "## Licence\n\n" + _licence(base, licence),
    ]
    return "\n\n".join(parts) + "\n"


def public_names(adapters: Iterable[Path]) -> set[str]:
    """Ids of the hub that the adapters' cards name: whoever wrote them had loaded these. A card that is damaged or not
    there names none.
    """
    from huggingface_hub import ModelCard

    found: set[str] = set()
    for adapter in adapters:
        try:
            data = ModelCard.load(adapter / "README.md", ignore_metadata_errors=True).data
        except Exception:  # YAML of somebody's, read by a library: whatever is wrong with it, it names nothing
            continue
        for names in (data.get("base_model"), data.get("datasets")):
            found |= {name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)}
    return found


def _opening(recipe: Recipe, summary: Summary, base: str | None) -> str:
    return (
        f"Rank {recipe.lora.rank} LoRA factors for {base or 'a local base model'}, trained with federated learning by "
        f"fedsrd {__version__}: every client's data stayed with it, and only the parameters' changes were sent. "
        f"Method: `{recipe.method['name']}`, {summary.rounds} rounds."
    )


def _snippet(base: str | None) -> str:
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base or "PATH/TO/BASE"}")\n'
        'model = PeftModel.from_pretrained(base, "PATH/TO/THIS/FOLDER")\n```\n\n'
        'To publish it: `model.push_to_hub("NAME/ADAPTER")`, or this folder as it is with '
        "`hf upload NAME/ADAPTER PATH/TO/THIS/FOLDER`."
    )


def _data(recipe: Recipe) -> str:
    lines = []
    for client in recipe.clients:
        sources = ", ".join(_name(section) for section in client.sections) or "private data that only its site knows"
        lines.append(f"- {client.name}: {sources}")
    return "\n".join(lines)


def _schedule(training: TrainingOptions) -> str:
    found = [training.schedule + (f" over the rounds after {training.warmup} of warm-up" if training.warmup else "")]
    if training.round_schedule != "constant" or training.round_warmup:
        warmup = f" after {training.round_warmup} steps of warm-up" if training.round_warmup else ""
        found.append(f"{training.round_schedule} within a round{warmup}")
    return " and ".join(found)


def _training(recipe: Recipe, summary: Summary) -> str:
    training, lora = recipe.training, recipe.lora
    options = ", ".join(f"{key} {value}" for key, value in recipe.method.items() if key != "name")
    adapted = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    base = recipe.model.dtype + (
        "" if recipe.model.quantization == "none" else f", quantised to {recipe.model.quantization}"
    )
    return "\n".join(
        [
            f"- method `{recipe.method['name']}`" + (f" ({options})" if options else ""),
            f"- {summary.rounds} rounds of {training.steps} steps a client, {training.batch_size} x "
            f"{training.accumulation} sequences of at most {training.max_length} tokens",
            f"- AdamW, learning rate {training.learning_rate:g}, {_schedule(training)}, fresh each round; prompt style "
            f"`{training.prompt}`; loss on the response only",
            f"- LoRA: rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {adapted}: "
            f"{summary.parameters:,} parameters",
            f"- base weights: {base}",
            f"- weighting of clients: {recipe.weighting}; seed {recipe.seed}",
        ]
    )


def _bytes(summary: Summary) -> str:
    mib = 1 << 20
    up, down = summary.bytes_up / mib, summary.bytes_down / mib
    text = f"{up:.2f} MiB up and {down:.2f} MiB down, by all clients in all rounds"
    share = summary.ratio_to_dense_float32
    return text + ("." if share is None else f": {share:.1%} of sending every parameter in float32 both ways.")


def _privacy(promised: list[str]) -> str:
    lines = "\n".join(f"- {sentence}" for sentence in promised)
    return f"What all rounds of training together have given away, by the clients' own accounts:\n\n{lines}"


def _scores(summary: Summary) -> str:
    before, after = summary.base, summary.final
    if before is None or after is None:
        return "Not measured."
    lines = [
        "Held-out response NLL, nats a token, less is better:",
        "",
        "| set | base model | with this adapter |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {before.by_set[name]:.3f} | {value:.3f} |" for name, value in after.by_set.items()]
    for was, now, label in (
        (before.in_domain, after.in_domain, "mean in-domain"),
        (before.out_of_domain, after.out_of_domain, "mean out of domain"),
    ):
        if was is not None and now is not None:
            lines.append(f"| {label} | {was:.3f} | {now:.3f} |")
    return "\n".join(lines)


def _licence(base: str | None, licence: str | None) -> str:
    if licence is None:
        return (
            "Not stated: the base model's licence applies to what is made of it, and the data's terms to what was "
            "learnt. Set `license` above before publishing (in a recipe: `model.license`)."
        )
    return f"`{licence}`, that of the base model{f' {base}' if base else ''}; the data's own terms apply besides."


def _sources(recipe: Recipe) -> list[str]:
    sections = [section for client in recipe.clients for section in client.sections]
    return [section.source for section in sections if is_public(section.source, "dataset")]


def _name(section: DataSection) -> str:
    found = shown(section.source, "dataset")
    return f"`{found}`" if found == section.source else found
