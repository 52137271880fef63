"""The library's face: a loop of one's own with PEFT, runs and their results, and what is refused."""

import subprocess
import sys

import pytest
import tomli_w
import torch

import fedsrd
from fedsrd.errors import FedSRDError, PayloadError, RunFolderError


def test_importing_is_quick_and_the_names_are_there():
    code = (
        "import sys, fedsrd; assert 'torch' not in sys.modules; "
        "print(set(fedsrd.__all__) <= set(dir(fedsrd)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    assert all(callable(getattr(fedsrd, name)) for name in fedsrd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedsrd.nothing  # noqa: B018


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

    before = loss()
    server = fedsrd.Aggregator(get_peft_model_state_dict(peft_model), method=method)
    replica = server.state
    for number in range(1, 4):
        payloads = []
        for client, batch in enumerate(batches):
            set_peft_model_state_dict(peft_model, replica)
            train(batch)
            after = get_peft_model_state_dict(peft_model)
            delta = fedsrd.sparsify(replica, after, method=method, round=number, client=f"c{client}")
            payloads.append(fedsrd.encode(delta, replica, round=number))
        broadcast = server.close(payloads)
        replica = fedsrd.apply(replica, broadcast, method=method)
        assert all(torch.equal(replica[name], tensor) for name, tensor in server.state.items())
        assert list(replica) == list(server.state)
    assert server.round == 3
    set_peft_model_state_dict(peft_model, replica)
    assert loss() < before
    dense = 4 * sum(tensor.numel() for tensor in replica.values())
    if method.startswith("fedsrd"):
        assert max(map(len, payloads)) < 0.3 * dense


def small(value=0.0):
    a = torch.arange(12.0).reshape(2, 6) / 10
    return {"q.lora_A.weight": a, "q.lora_B.weight": torch.full((4, 2), value)}


def test_narrow_values_and_weights():
    server = fedsrd.Aggregator(small(), method="fedavg", values="int8")
    options = {"method": "fedavg"}
    payloads = [fedsrd.encode(fedsrd.sparsify(small(), small(v), **options), small(), round=1) for v in (0.0, 1.0)]
    broadcast = server.close(payloads, weights=[1, 3])
    assert server.state["q.lora_B.weight"].mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(fedsrd.apply(small(), broadcast, **options)["q.lora_B.weight"], server.state["q.lora_B.weight"])


def test_decode_gives_what_was_encoded():
    delta = fedsrd.sparsify(small(), small(0.5), uplink="dense")
    found = fedsrd.decode(fedsrd.encode(delta, small(), round=1), small())
    assert found
    assert all(torch.equal(sparse.dense(), delta[slot].dense()) for slot, sparse in found.items())


def test_what_is_wrong_is_said_and_changes_nothing():
    server = fedsrd.Aggregator(small())
    good = fedsrd.encode(fedsrd.sparsify(small(), small(0.5)), small(), round=1)
    late = fedsrd.encode(fedsrd.sparsify(small(), small(0.5)), small(), round=2)
    for payloads, kind, message in (
        ([], ValueError, "a round needs one at least"),
        ([good, late], PayloadError, "payload 1: a uplink of round 2: expected an uplink of round 1"),
        ([good[:-1]], PayloadError, ""),
        ([b"nonsense"], PayloadError, ""),
    ):
        with pytest.raises(kind, match=message):
            server.close(payloads)
    with pytest.raises(ValueError, match="expected 1 positive numbers"):
        server.close([good], weights=[0])
    assert server.round == 0
    assert all(torch.equal(tensor, small()[name]) for name, tensor in server.state.items())
    with pytest.raises(PayloadError, match="expected a broadcast"):
        fedsrd.apply(small(), good)
    with pytest.raises(ValueError, match="different adapters"):
        fedsrd.sparsify(small(), {"k" + name: tensor for name, tensor in small().items()})
    with pytest.raises(ValueError, match="after holds NaN"):
        fedsrd.sparsify(small(), small(float("nan")))
    with pytest.raises(FedSRDError, match="did you mean 'alpha'"):
        fedsrd.sparsify(small(), small(0.5), alhpa=0.5)
    with pytest.raises(ValueError, match="needs more than state dicts.*fedavg"):
        fedsrd.Aggregator(small(), method="flora")


def test_a_run_and_its_results(tiny_recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe), encoding="utf-8")
    done = fedsrd.run(fedsrd.load_recipe(file, ["rounds=2"]), tmp_path / "run")
    assert done.summary.rounds == 2
    frame = done.frame()
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss/mean"].iloc[1:].tolist() == [r.train_loss for r in done.records[1:]]
    table = done.arrow()
    assert table.num_rows == 3
    assert "round" in table.column_names
    assert (done.adapters[0] / "adapter_config.json").is_file()
    again = fedsrd.Run(tmp_path / "run")
    assert again.summary == done.summary
    with pytest.raises(RunFolderError):
        fedsrd.Run(tmp_path / "nothing")


def test_a_comparison(tiny_recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps({**tiny_recipe, "rounds": 1}), encoding="utf-8")
    found = fedsrd.compare_methods(file, tmp_path / "out", methods=["fedsrd", "fedavg"], seeds=[0])
    assert {row.label for row in found.rows} == {"fedsrd", "fedavg"}
    assert (tmp_path / "out" / "report.html").is_file()
