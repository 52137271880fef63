"""Plans against the paper's table, and what the command line says."""

import json

import pytest
from typer.testing import CliRunner

from fedsrd.cli import app
from fedsrd.core.lora import LoraModule, modules_of, table_of
from fedsrd.errors import FedSRDError, ModelError, RecipeError
from fedsrd.planning import payloads
from fedsrd.planning.architecture import architecture
from fedsrd.planning.forecast import federated
from fedsrd.planning.links import bits_per_second
from fedsrd.privacy.accounting import Event, epsilon
from fedsrd.wire import WireOptions

MIB = 1 << 20


def plan(*arguments):
    found = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_the_papers_table_for_llama():
    found = plan(
        "--model", "meta-llama/Llama-3.2-3B", "--method", "fedavg,ffa-lora,fed-dare,fedicu-style,fedsrd,fedsrd-e"
    )
    assert found["adapter_parameters"] == 97_255_424
    assert found["adapted_modules"] == 196
    assert found["parameters"] == pytest.approx(3.21e9, rel=0.005)
    rows = {row["method"]: row for row in found["methods"] if row["values"] == "paper's format"}
    # (up, down) of the paper in MiB; FFA-LoRA as counted from its shapes, where the paper rounds to a half.
    paper = {
        "fedavg": (371, 371),
        "ffa-lora": (189, 189),
        "fed-dare": (48.7, 141.5),
        "fedicu-style": (197, 371),
        "fedsrd": (31, 43),
        "fedsrd-e": (31, 43),
    }
    for name, (up, down) in paper.items():
        assert rows[name]["up_bytes"] / MIB == pytest.approx(up, rel=0.02), name
        if name != "fedicu-style":  # the paper's broadcast is dense, ours what anybody sent
            assert rows[name]["down_bytes"] / MIB == pytest.approx(down, rel=0.02), name


def test_the_papers_table_for_qwen():
    found = plan("--model", "Qwen/Qwen2-7B", "--rank", "32", "--method", "fedavg")
    row = next(row for row in found["methods"] if row["values"] == "paper's format")
    assert (row["up_bytes"] + row["down_bytes"]) / MIB == pytest.approx(616, rel=0.005)
    assert found["parameters"] == pytest.approx(7.62e9, rel=0.005)


def test_time_and_totals_follow_from_the_lengths(tiny_model):
    found = plan(
        "--model", str(tiny_model), "--rank", "4", "--method", "fedavg", "--clients", "3", "--rounds", "7",
        "--up", "8kbit", "--down", "1KB/s",
    )  # fmt: skip
    for row in found["methods"]:
        assert row["total_bytes"] == pytest.approx(21 * (row["up_bytes"] + row["down_bytes"]), rel=1e-3)
        assert row["link_seconds_a_round"] == pytest.approx((row["up_bytes"] + row["down_bytes"]) / 1000, rel=1e-3)


def test_methods_with_feedback_are_planned_in_ternary_values_too(tiny_model):
    found = plan("--model", str(tiny_model), "--rank", "4", "--method", "fedavg,cyclic,fedsrd-ef")
    by_method = {}
    for row in found["methods"]:
        by_method.setdefault(row["method"], {})[row["values"]] = row["up_bytes"]
    assert [name for name, rows in by_method.items() if "ternary" in rows] == ["cyclic", "fedsrd-ef"]
    assert by_method["cyclic"]["ternary"] < 0.5 * by_method["cyclic"]["int4"]


def test_every_method_that_sends_can_be_planned_and_stacks_grow_with_the_clients():
    table = table_of(LoraModule(f"m{i}", 64, 48, 4) for i in range(3))
    dense = payloads.costs("fedavg", table, 2, [WireOptions()], 0.05)[0]
    grown = set()
    for name in federated():
        few, many = (payloads.costs(name, table, clients, [WireOptions()], 0.05)[0] for clients in (2, 40))
        assert few.up > 0
        assert few.down > 0
        # SCAFFOLD's control variates make it twice as much both ways, whoever takes part.
        times = 2 if name == "scaffold" else 1
        stacked = few.down > 1.5 * times * dense.down
        assert (few.up > 1.5 * dense.up) is (times == 2), name
        assert (many.down > 10 * few.down) is stacked, name
        grown |= {name} if stacked else set()
    assert grown == {"flora", "fedex-lora"}


def test_a_config_alone_is_enough(tiny_model):
    whole = architecture(str(tiny_model), 4, "all-linear")
    alone = architecture(str(tiny_model / "config.json"), 4, "all-linear")
    assert modules_of(alone.table) == modules_of(whole.table)
    assert alone.table == whole.table
    assert (alone.layers, alone.hidden, alone.key_value, alone.intermediate) == (2, 32, 16, 48)


def test_what_a_privacy_budget_allows(tiny_model):
    found = plan(
        "--model",
        str(tiny_model),
        "--rank",
        "4",
        "--examples",
        "400",
        "--batch",
        "16",
        "--rounds",
        "5",
        "--epsilon",
        "2",
    )["privacy"]
    assert found["sampling_rate"] == 0.04
    noises = {row["epsilon"]: row["noise_multiplier"] for row in found["noise"]}
    assert list(noises) == [1, 2, 3, 8]
    for wanted, noise in noises.items():
        event = Event(noise_multiplier=noise, sampling_rate=0.04, steps=50)
        assert 0.97 * wanted < epsilon([event], 1e-5) <= wanted
    shown = CliRunner().invoke(
        app, ["plan", "--model", str(tiny_model), "--rank", "4", "--examples", "4", "--delta", "0.1"]
    )
    assert "noise multiplier" in shown.output
    assert "delta = 0.1" not in shown.output
    bad = ["plan", "--model", str(tiny_model), "--rank", "4", "--examples", "20", "--delta", "0.1"]
    assert "delta = 0.1 is no less than 1/20" in CliRunner().invoke(app, bad).output
    alone = CliRunner().invoke(app, ["plan", "--model", str(tiny_model), "--epsilon", "2"])
    assert alone.exit_code == 2
    assert "--examples" in alone.output + str(alone.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none.json"], "none.json: no such file"),
        (["--model", "./nowhere"], "no such folder"),
        (["--model", "Qwen/Qwen2-7B", "--rank", "9999"], "larger than layer"),
        (["--model", "Qwen/Qwen2-7B", "--method", "local"], "sends nothing"),
        (["--model", "Qwen/Qwen2-7B", "--method", "fedsdr"], "Did you mean 'fedsrd'"),
        (["--model", "Qwen/Qwen2-7B", "--targets", "no_proj"], "no layer to adapt"),
        (["--model", "Qwen/Qwen2-7B", "--up", "fast"], "--up 'fast': expected a speed such as 10Mbit"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message):
    found = CliRunner().invoke(app, ["plan", *arguments])
    assert found.exit_code != 0
    assert isinstance(found.exception, FedSRDError)
    assert isinstance(found.exception, ModelError | RecipeError)
    assert message in str(found.exception)


@pytest.mark.parametrize("text", ["", "0Mbit", "-1Mbit", "10", "10 parsec", "1e6bit"])
def test_a_speed_that_is_none(text):
    with pytest.raises(RecipeError, match="--down"):
        bits_per_second(text, "--down")
