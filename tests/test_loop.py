"""The codec in a loop of one's own: PEFT's state dicts in, bytes out, and what is refused."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fedsrd
from fedsrd.errors import FederationError, FedSRDError, PayloadError, RecipeError


@pytest.fixture
def peft_model(tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))


@pytest.mark.parametrize("method", ["fedsrd", "fedsrd-e", "fedavg", "flexlora", "fed-dare"])
def test_a_loop_of_ones_own_with_peft(peft_model, method):
    """What README shows: four clients, three rounds, plain PyTorch training."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    batches = [torch.randint(5, 290, (2, 12), generator=torch.Generator().manual_seed(c)) for c in range(4)]

    def train(batch):
        optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=5e-3)
        for _ in range(3):
            optimizer.zero_grad()
            peft_model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()

    def loss():
        with torch.no_grad():
            return sum(peft_model(input_ids=batch, labels=batch).loss.item() for batch in batches)

    # A fifth of a tiny B is nearly singular.
    options = {"method": method} | ({"damping": 0.1} if method.startswith("fedsrd") else {})
    before = loss()
    server = fedsrd.Aggregator(get_peft_model_state_dict(peft_model), **options)
    replica = server.state
    for number in range(1, 4):
        payloads = []
        for client, batch in enumerate(batches):
            set_peft_model_state_dict(peft_model, replica)
            train(batch)
            after = get_peft_model_state_dict(peft_model)
            delta = fedsrd.sparsify(replica, after, round=number, client=f"c{client}", **options)
            payloads.append(fedsrd.encode(delta, replica, round=number, client=f"c{client}"))
        broadcast = server.close(payloads)
        replica = fedsrd.apply(replica, broadcast, **options)
        assert all(torch.equal(replica[name], tensor) for name, tensor in server.state.items())
        assert list(replica) == list(server.state)
    assert server.round == 3
    set_peft_model_state_dict(peft_model, replica)
    assert loss() < before
    dense = 4 * sum(tensor.numel() for tensor in replica.values())
    if method.startswith("fedsrd"):
        assert max(map(len, payloads)) < 0.3 * dense


FIRST = {"round": 1, "client": "a"}


def small(value=0.0):
    a = torch.arange(12.0).reshape(2, 6) / 10
    return {"q.lora_A.weight": a, "q.lora_B.weight": torch.full((4, 2), value)}


def update(after, client="a", round=1, values="float32", seed=0, **options):
    """A client's payload for its change from `small()`."""
    delta = fedsrd.sparsify(small(), after, round=round, client=client, seed=seed, **options)
    return fedsrd.encode(delta, small(), round=round, client=client, values=values, seed=seed)


def test_narrow_values_and_weights():
    server = fedsrd.Aggregator(small(), method="fedavg", values="int8")
    options = {"method": "fedavg"}
    payloads = [update(small(value), client=f"c{value}", **options) for value in (0.0, 1.0)]
    broadcast = server.close(payloads, weights=[1, 3])
    assert server.state["q.lora_B.weight"].mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(fedsrd.apply(small(), broadcast, **options)["q.lora_B.weight"], server.state["q.lora_B.weight"])


def test_decode_gives_what_was_encoded():
    delta = fedsrd.sparsify(small(), small(0.5), round=1, client="a", sparsifier="dense")
    found = fedsrd.decode(fedsrd.encode(delta, small(), round=1, client="a"), small())
    assert found
    assert all(torch.equal(sparse.dense(), delta[name].dense()) for name, sparse in found.items())


def test_what_is_wrong_is_said_and_changes_nothing():
    server = fedsrd.Aggregator(small())
    good, late = update(small(0.5)), update(small(0.5), round=2)
    for payloads, kind, message in (
        ([], ValueError, "a round needs one at least"),
        (
            [good, late],
            PayloadError,
            "payload 1: a uplink of round 2 for version 1: expected an uplink of round 1 for version 0",
        ),
        ([good[:-1]], PayloadError, ""),
        ([b"nonsense"], PayloadError, ""),
    ):
        with pytest.raises(kind, match=message):
            server.close(payloads)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected 1 positive numbers"):
            server.close([good], weights=[weight])
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        server.close([good, good], weights=[1e308, 1e308])
    assert server.round == 0
    assert all(torch.equal(tensor, small()[name]) for name, tensor in server.state.items())
    with pytest.raises(PayloadError, match="expected a broadcast"):
        fedsrd.apply(small(), good)
    with pytest.raises(ValueError, match="different adapters"):
        fedsrd.sparsify(small(), {"k" + name: tensor for name, tensor in small().items()}, **FIRST)
    with pytest.raises(ValueError, match="after holds NaN"):
        fedsrd.sparsify(small(), small(float("nan")), **FIRST)
    with pytest.raises(FedSRDError, match="did you mean 'alpha'"):
        fedsrd.sparsify(small(), small(0.5), alhpa=0.5, **FIRST)


def test_a_payload_that_spoils_the_round_is_named_and_changes_nothing():
    server = fedsrd.Aggregator(small(), method="flasc")
    payloads = [update(small(value), method="flasc") for value in (0.5, 1e30, 0.25)]
    with pytest.raises(FederationError, match="^payload 1: the round cannot close with it: round 1: ") as found:
        server.close(payloads)
    assert "payload 0" not in str(found.value)
    assert server.round == 0
    assert all(torch.equal(tensor, small()[name]) for name, tensor in server.state.items())
    server.close(payloads[::2])
    assert server.round == 1


def with_noise(client, value=0.3):
    """A trained state of which int4 can hold few values as they are."""
    noise = torch.Generator().manual_seed(sum(client.encode()))
    state = small(value)
    state["q.lora_B.weight"] += torch.rand((4, 2), generator=noise)
    return state


def test_two_clients_round_on_streams_of_their_own():
    """README's loop: the same change of two clients, in a narrow type, must not be rounded the same way: the mean of
    equal errors would be as wrong as one.
    """
    after = with_noise("both")
    options = {"method": "fedavg", "values": "int4"}
    one, other = (update(after, client, **options) for client in ("ward-a", "ward-b"))
    again = update(after, "ward-a", **options)
    first, second = (fedsrd.decode(payload, small())["q.lora_B.weight"].dense() for payload in (one, other))
    assert one == again
    assert not torch.equal(first, second)
    assert one != update(after, "ward-a", round=2, **options)
    assert one != update(after, "ward-a", seed=1, **options)
    # Over many clients the errors cancel.
    wanted = after["q.lora_B.weight"]
    mean = sum(
        fedsrd.decode(update(after, f"c{place}", **options), small())["q.lora_B.weight"].dense() for place in range(400)
    )
    errors = (mean / 400 - wanted).abs().max(), (first - wanted).abs().max()
    assert errors[0] < 0.15 * errors[1]


def test_the_loop_of_the_readme_gives_each_client_its_own_noise():
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python loop\n(.*?)```", page, re.S).group(1)
    seen = {}

    class Trains:
        def __init__(self, name):
            self.name = name

        def train(self, model):
            model["state"] = {key: tensor + 0.1 for key, tensor in with_noise("both").items()}

    def kept(delta, state, **more):
        payload = fedsrd.encode(delta, state, **more)
        seen[more["round"], more["client"]] = delta, payload
        return payload

    def put(model, state):
        model["state"] = {name: tensor.clone() for name, tensor in state.items()}

    names = {
        "fedsrd": SimpleNamespace(**{name: getattr(fedsrd, name) for name in fedsrd.__all__} | {"encode": kept}),
        "get_peft_model_state_dict": lambda model: model["state"],
        "set_peft_model_state_dict": put,
        "model": {"state": small()},
        "clients": [Trains("ward-a"), Trains("ward-b")],
    }
    lines = [line for line in code.splitlines() if not line.startswith(("import ", "from "))]
    exec("\n".join(lines), names)
    assert sorted(seen) == [(number, name) for number in (1, 2, 3) for name in ("ward-a", "ward-b")]
    for number in (1, 2, 3):
        (one, first), (other, second) = (seen[number, name] for name in ("ward-a", "ward-b"))
        assert all(torch.equal(sparse.dense(), other[name].dense()) for name, sparse in one.items())
        assert first != second
    assert all(torch.equal(names["state"][name], tensor) for name, tensor in names["server"].state.items())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("flora", "changes the base model"),
        ("fedex-lora", "changes the base model"),
        ("fedsa-lora", "ends with a model of each client's own"),
        ("local", "is a reference point that sends nothing"),
        ("centralised", "is a reference point that sends nothing"),
        ("scaffold", "keeps state at its clients between rounds and changes the gradients of local training"),
        ("feddyn", "keeps state at its clients between rounds and changes the gradients of local training"),
    ],
)
def test_a_method_that_needs_more_than_state_dicts_is_refused_everywhere(method, reason):
    match = f"{method} .*{reason}.*a loop over state dicts cannot follow; use fedsrd run. Methods that fit: .*fedavg"
    broadcast = fedsrd.Aggregator(small()).close([update(small(0.5))])
    for use in (
        lambda: fedsrd.Aggregator(small(), method=method),
        lambda: fedsrd.sparsify(small(), small(0.5), method=method, **FIRST),
        lambda: fedsrd.apply(small(), broadcast, method=method),
    ):
        with pytest.raises(RecipeError, match=match):
            use()


def test_a_server_optimizer_is_checked():
    with pytest.raises(RecipeError, match="makes no step that a server optimizer could change"):
        fedsrd.Aggregator(
            small(), method="fedsrd", server="svd", server_optimizer={"name": "sgd", "learning_rate": 1.0}
        )
    with pytest.raises(RecipeError, match=r"server_optimizer.name = 'sdg': expected one of 'sgd', 'adam'"):
        fedsrd.Aggregator(small(), method="fedavg", server_optimizer={"name": "sdg"})
