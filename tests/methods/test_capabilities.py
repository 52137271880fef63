"""Which host takes which method, and what a refusal says; and the options that have moved or been renamed."""

import pytest
import torch
from toy import Federation, build, config_of

from fedsrd import methods, recipe
from fedsrd.core.tensors import TensorSpec, TensorTable
from fedsrd.errors import RecipeError
from fedsrd.federation.setup import method_of
from fedsrd.loop import Aggregator, sparsify
from fedsrd.methods import capabilities
from fedsrd.methods.capabilities import Host, Need

REFERENCES = {"local", "centralised"}
NEW_BASE = {"flora", "fedex-lora"}
CONTROLLED = {"scaffold", "feddyn"}
OWN_LOOP = REFERENCES | NEW_BASE | CONTROLLED | {"fedsa-lora"}

KEEPING = {"cyclic", "fedsrd-ef", "sparseloco"}
REFUSED = {
    "LIBRARY": OWN_LOOP | KEEPING,
    "STRATEGY": OWN_LOOP,
    "NETWORK": {"centralised"},
    "QUANTISED_BASE": NEW_BASE,
    "LOWER_RANKS": set(methods.names()) - {"flexlora", "flora"},
    "PLAIN_TENSORS": NEW_BASE | {"fedsrd", "fedsrd-e", "fedsrd-ef", "ffa-lora", "flexlora", "fedsa-lora"},
    "SERVER_OPTIMIZER": REFERENCES | NEW_BASE | {"flexlora"},
    "SUM_ONLY": set(methods.names()) - {"fedavg", "fedprox", "ffa-lora", "fed-dare"} - KEEPING,
    "PLANNER": REFERENCES,
    "ROBUST": REFERENCES | {"fedsa-lora"},
    "REWEIGHED": CONTROLLED,
    "MASKED_SUM": set(methods.names()) - {"fedavg", "fedprox", "ffa-lora", "cyclic"},
    "BY_ELEMENT": set(methods.names()) - {"fedavg", "fedprox", "ffa-lora", "cyclic"},
}
"""The methods that each host refuses, with their default options."""

INSTEAD = {
    "LIBRARY": "use fedsrd run",
    "STRATEGY": "use FedSRD's own Flower app (docs/deploy.md)",
    "NETWORK": "use fedsrd run",
    "MASKED_SUM": 'fedavg and its kin fit with sparsifier = "dense" or "cyclic", fedsrd-e with that and '
    'decompose_at = "client"',
    "REWEIGHED": 'take "krum" or "multi-krum"',
    "BY_ELEMENT": 'take "multi-krum" or "geometric-median"',
}
EVERY_HOST = pytest.mark.parametrize("host", sorted(REFUSED))


def hosts():
    return {name: value for name, value in vars(capabilities).items() if isinstance(value, Host)}


def refusal(method, host, where=""):
    with pytest.raises(RecipeError) as caught:
        capabilities.check(method, host, where)
    return str(caught.value)


def test_every_host_is_in_this_table():
    assert set(hosts()) == set(REFUSED)
    assert len({host.name for host in hosts().values()}) == len(REFUSED)
    assert {name for name, host in hosts().items() if host.instead} == set(INSTEAD)
    # Every need keeps a method from some host; none is there for nothing.
    assert set().union(*(host.cannot for host in hosts().values())) == set(Need)


@EVERY_HOST
def test_which_methods_it_takes(host):
    found = hosts()[host]
    assert capabilities.fitting(found) == sorted(set(methods.names()) - REFUSED[host])
    for name in capabilities.fitting(found):
        capabilities.check(build(name), found)


@pytest.mark.parametrize(("host", "name"), [(host, name) for host in sorted(REFUSED) for name in sorted(REFUSED[host])])
def test_a_refusal_says_what_is_needed_what_else_there_is_and_what_fits(host, name):
    found = hosts()[host]
    missing = capabilities.needs(build(name)) & found.cannot
    assert missing
    message = refusal(build(name), found)
    assert message.startswith(f"method.name = {name!r}: {name} ")
    for need in Need:
        assert (need.value in message) is (need in missing)
    assert f"which {found.name} cannot follow" in message
    if host in INSTEAD:
        assert f"; {INSTEAD[host]}. " in message
    else:
        assert ";" not in message
    fitting = message.split("Methods that fit: ")[1].split(", ")
    assert fitting == sorted(set(methods.names()) - REFUSED[host])
    assert refusal(build(name), found, "method = x").startswith(f"method = x: {name} ")


NEEDS = {
    Need.BASE_CHANGE: NEW_BASE,
    Need.PERSONAL: {*REFERENCES, "fedsa-lora"},
    Need.REFERENCE: REFERENCES,
    Need.POOLED: {"centralised"},
    Need.CLIENT_STATE: {*REFERENCES, *CONTROLLED, *KEEPING, "fedsa-lora"},
    Need.GRADIENT_HOOK: CONTROLLED,
    Need.COUNTS_ALIKE: CONTROLLED,
    Need.EQUAL_RANKS: REFUSED["LOWER_RANKS"],
    Need.LORA: REFUSED["PLAIN_TENSORS"],
    Need.SINGLE_UPDATES: REFUSED["SUM_ONLY"],
    Need.NO_STEP: REFUSED["SERVER_OPTIMIZER"],
    Need.OWN_ELEMENTS: REFUSED["MASKED_SUM"],
}


@pytest.mark.parametrize("need", Need)
def test_who_has_which_need(need):
    assert {name for name in methods.names() if need in capabilities.needs(build(name))} == NEEDS[need]


@pytest.mark.parametrize("name", methods.names())
def test_what_a_method_says_of_itself_is_what_it_does(name):
    """Hooks, memories, base and model are as the flags have it."""
    method = build(name)
    federation = Federation(method).rounds(2)
    assert any(client.memory.kept for client in federation.clients) is method.keeps_client_state
    assert any(plan.gradient_hook for trainer in federation.trainers.values() for plan in trainer.seen) is (
        method.hooks_gradients
    )
    assert bool(federation.server.state.base_delta) is method.changes_base
    tensors, model = federation.server.state.tensors, federation.server.model()
    differs = any(not torch.equal(tensors[key], tensor) for key, tensor in model.items())
    assert differs is method.server_model


@pytest.mark.parametrize(
    ("options", "host", "fits"),
    [
        (("fedsrd", {"server": "svd"}), capabilities.SERVER_OPTIMIZER, False),
        (("fedsrd-e", {"server": "svd"}), capabilities.SERVER_OPTIMIZER, False),
        (("fedsrd", {"server": "average"}), capabilities.SERVER_OPTIMIZER, True),
        (("fedsrd", {"server": "alternate"}), capabilities.SERVER_OPTIMIZER, True),
        (("fedsrd-e", {"decompose_at": "client"}), capabilities.SUM_ONLY, True),
        (("fedsrd", {"decompose_at": "client", "project": False}), capabilities.SUM_ONLY, True),
        (("fedsrd-e", {"decompose_at": "server"}), capabilities.SUM_ONLY, False),
        (("fedavg", {"sparsifier": "importance"}), capabilities.SUM_ONLY, True),
    ],
)
def test_an_option_may_decide(options, host, fits):
    name, chosen = options
    if fits:
        capabilities.check(build(name, **chosen), host)
    else:
        message = refusal(build(name, **chosen), host)
        reason = Need.SINGLE_UPDATES if host is capabilities.SUM_ONLY else Need.NO_STEP
        assert reason.value in message


# Where a user meets them.


def test_a_loop_of_ones_own_refuses():
    state = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.zeros(4, 2)}
    for name in sorted(OWN_LOOP):
        with pytest.raises(RecipeError, match="a loop over state dicts cannot follow; use fedsrd run"):
            Aggregator(state, method=name)
        with pytest.raises(RecipeError, match="a loop over state dicts cannot follow; use fedsrd run"):
            sparsify(state, state, round=1, client="c", method=name)


@pytest.mark.parametrize("name", sorted(REFUSED["PLAIN_TENSORS"]))
def test_tensors_that_are_no_lora_factors_are_refused_before_anything_starts(name):
    table = TensorTable((TensorSpec("prompt", (40,)),))
    with pytest.raises(RecipeError, match="works on pairs of LoRA factors, which a trainable without LoRA factors"):
        config_of(build(name), table)


# Options that have moved or been renamed, as a recipe's reader meets them.


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ('{ name = "fedsrd", uplink = "dense" }', "method: uplink = 'dense' is now called sparsifier"),
        ('{ name = "fedsrd-e", uplink = "random" }', "method: uplink = 'random' is now called sparsifier"),
        ('{ name = "fedavg", uplink = "importance" }', "method: uplink = 'importance' is now called sparsifier"),
        ('{ name = "ffa-lora", uplink = "importance" }', "method: uplink = 'importance' is now called sparsifier"),
        (
            '{ name = "fedavg", server_lr = 1.5 }',
            'method: server_lr = 1.5 has moved: server_optimizer = { name = "sgd", learning_rate = 1.5 }',
        ),
        ('{ name = "fedprox", server_lr = 0.5, mu = 0.1 }', "method: server_lr = 0.5 has moved: server_optimizer = "),
        (
            '{ name = "flasc", server_lr = 0.01 }',
            "method: server_lr = 0.01 has moved: [server_optimizer] learning_rate = 0.01",
        ),
        ('{ name = "flasc", beta1 = 0.8 }', "method: beta1 = 0.8 has moved: [server_optimizer] beta1 = 0.8"),
        ('{ name = "flasc", beta2 = 0.9 }', "method: beta2 = 0.9 has moved: [server_optimizer] beta2 = 0.9"),
        ('{ name = "flasc", epsilon = 1e-8 }', "method: epsilon = 1e-08 has moved: [server_optimizer] epsilon = 1e-08"),
    ],
)
def test_an_option_that_has_moved_is_refused_with_where_to(method, message):
    with pytest.raises(RecipeError) as caught:
        recipe.load(None, [f"method={method}"])
    assert message in str(caught.value)


def test_overrides_of_single_keys_and_the_library_say_the_same():
    for overrides in (["method.uplink=dense"], ["method.uplink=dense", "method.alpha=0.5"]):
        with pytest.raises(RecipeError, match="uplink = 'dense' is now called sparsifier"):
            recipe.load(None, overrides)
    state = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.zeros(4, 2)}
    with pytest.raises(RecipeError, match="uplink = 'dense' is now called sparsifier"):
        Aggregator(state, method="fedsrd", uplink="dense")
    with pytest.raises(RecipeError, match="server_lr = 2.0 has moved"):
        Aggregator(state, method="fedavg", server_lr=2.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.alpa=0.5", "unknown key 'method.alpa': did you mean 'alpha'?"),
        ("method.zzz=1", "unknown key 'method.zzz': known keys: "),
        ("method.alpha=2", "method.alpha = 2: "),
        ("method.sparsifier=uplink", "method.sparsifier = 'uplink': "),
        ("method.decompose_at=client", 'method: decompose_at = "client": needs server = "alternate"'),
        ("server_optimizer.nme=sgd", "unknown key 'server_optimizer.nme': did you mean 'name'?"),
        ('server_optimizer={name="adam",learning_rate=0.1,momentum=0.9}', "momentum and nesterov belong to sgd"),
    ],
)
def test_other_mistakes_are_still_told_as_before(override, message):
    with pytest.raises(RecipeError) as caught:
        recipe.load(None, [override])
    assert message in str(caught.value)
    assert "method.:" not in str(caught.value)


def test_the_new_places_are_taken():
    found = recipe.load(
        None, ['method={name="fedavg",sparsifier="importance"}', 'server_optimizer={name="sgd",learning_rate=1.5}']
    )
    assert method_of(found.method).options.sparsifier == "importance"
    assert found.server_optimizer.learning_rate == 1.5
