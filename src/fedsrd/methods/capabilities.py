"""What a method needs, what a host can do, and the one place that refuses what does not fit."""

from dataclasses import dataclass
from enum import Enum

from fedsrd.errors import RecipeError
from fedsrd.methods import registry
from fedsrd.methods.method import Method


class Need(Enum):
    """What a method may ask of whoever hosts it; the value says it in a message."""

    BASE_CHANGE = "changes the base model"
    PERSONAL = "ends with a model of each client's own"
    REFERENCE = "is a reference point that sends nothing"
    POOLED = "has all data in one place"
    CLIENT_STATE = "keeps state at its clients between rounds"
    GRADIENT_HOOK = "changes the gradients of local training"
    EQUAL_RANKS = "needs every client at the adapter's rank"
    LORA = "works on pairs of LoRA factors"
    SINGLE_UPDATES = "needs every client's own update, not their sum"
    NO_STEP = "makes no step that a server optimizer could change"
    COUNTS_ALIKE = "keeps something at its server in which every client counts alike"
    OWN_ELEMENTS = "lets each client choose which elements it sends"


@dataclass(frozen=True)
class Host:
    """Who runs a method.

    Attributes:
        name: in messages.
        cannot: what it has no means for.
        instead: what else the user may do; "" where the other methods are all there is.
    """

    name: str
    cannot: frozenset[Need]
    instead: str = ""


LIBRARY = Host(
    "a loop over state dicts",
    frozenset({Need.BASE_CHANGE, Need.PERSONAL, Need.REFERENCE, Need.CLIENT_STATE, Need.GRADIENT_HOOK}),
    "use fedsrd run",
)
STRATEGY = Host(
    "a Flower strategy",
    frozenset({Need.BASE_CHANGE, Need.PERSONAL, Need.REFERENCE, Need.POOLED, Need.GRADIENT_HOOK}),
    "use FedSRD's own Flower app (docs/deploy.md)",
)
NETWORK = Host("a federation across sites", frozenset({Need.POOLED}), "use fedsrd run")
QUANTISED_BASE = Host("a quantised base model", frozenset({Need.BASE_CHANGE}))
LOWER_RANKS = Host("a client of a lower rank", frozenset({Need.EQUAL_RANKS}))
PLAIN_TENSORS = Host("a trainable without LoRA factors", frozenset({Need.LORA}))
SERVER_OPTIMIZER = Host("a [server_optimizer]", frozenset({Need.NO_STEP}))
SUM_ONLY = Host("a server that sees only the sum", frozenset({Need.SINGLE_UPDATES}))
MASKED_SUM = Host(
    "a sum of masked integers",
    frozenset({Need.SINGLE_UPDATES, Need.OWN_ELEMENTS, Need.PERSONAL, Need.REFERENCE, Need.POOLED, Need.BASE_CHANGE}),
    'fedavg and its kin fit with sparsifier = "dense" or "cyclic", fedsrd-e with that and decompose_at = "client"',
)
ROBUST = Host("a robust aggregate", frozenset({Need.PERSONAL, Need.REFERENCE, Need.POOLED}))
REWEIGHED = Host("an aggregate that reweighs clients", frozenset({Need.COUNTS_ALIKE}), 'take "krum" or "multi-krum"')
BY_ELEMENT = Host(
    "an aggregate element by element",
    frozenset({Need.SINGLE_UPDATES, Need.OWN_ELEMENTS, Need.PERSONAL, Need.REFERENCE, Need.POOLED}),
    'take "multi-krum" or "geometric-median"',
)
PLANNER = Host("fedsrd plan", frozenset({Need.REFERENCE}))


def needs(method: Method) -> frozenset[Need]:
    """All that a method asks for."""
    asked = {
        Need.BASE_CHANGE: method.changes_base,
        Need.PERSONAL: method.personal,
        Need.REFERENCE: method.reference,
        Need.POOLED: method.pooled,
        Need.CLIENT_STATE: method.keeps_client_state,
        Need.GRADIENT_HOOK: method.hooks_gradients,
        Need.COUNTS_ALIKE: method.counts_alike,
        Need.EQUAL_RANKS: not method.any_rank,
        Need.LORA: method.needs_lora,
        Need.SINGLE_UPDATES: not method.linear,
        Need.NO_STEP: not method.makes_steps,
        Need.OWN_ELEMENTS: not method.same_elements,
    }
    return frozenset(need for need, wanted in asked.items() if wanted)


def fitting(host: Host) -> list[str]:
    """The methods that a host can run, with their default options, sorted."""
    kinds = (registry.get(name) for name in registry.names())
    return [kind.name for kind in kinds if not needs(kind(kind.Options())) & host.cannot]


def check(method: Method, host: Host, where: str = "") -> None:
    """Refuses a method that a host has no means for.

    Args:
        method: with its options, which may decide.
        host: who is to run it.
        where: what the user wrote, to begin the message with; "" for the method's name.

    Raises:
        RecipeError: what the method needs, what the user may do instead, and which methods fit.
    """
    missing = [need for need in Need if need in needs(method) & host.cannot]
    if not missing:
        return
    reasons = " and ".join(need.value for need in missing)
    instead = f"; {host.instead}" if host.instead else ""
    given = where or f"method.name = {method.name!r}"
    raise RecipeError(
        f"{given}: {method.name} {reasons}, which {host.name} cannot follow{instead}. "
        f"Methods that fit: {', '.join(fitting(host))}"
    )
