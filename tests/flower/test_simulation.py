"""`flwr run .` on Flower's own simulation (Ray), with the app as a clone has it."""

import json
import re
import shutil
import subprocess

import psutil
import pytest
import tomli_w
from deployment import Deployment, block

pytestmark = pytest.mark.deployment


@pytest.fixture
def simulation(tmp_path):
    """Where to run `flwr`; the SuperLink that it leaves behind is stopped."""
    home = tmp_path / "sim"
    home.mkdir()
    made = Deployment(home, [])
    made.env["FEDSRD_STATE"] = str(home / "state")
    made.env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    yield made
    for process in psutil.process_iter(["cmdline"]):
        if any(str(home) in part for part in process.info["cmdline"] or []):
            process.kill()


def simulate(simulation, file, out, count):
    text = f"""flwr run "$APP" --stream --federation-config "num-supernodes={count}" \\
        --run-config "recipe='{file}' out='{out}'" """
    done = subprocess.run(
        ["bash", "-euc", block("sh", "everywhere") + text],
        env=simulation.env,
        cwd=simulation.home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (out / "summary.json").is_file(), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_simulation_gives_the_bytes_of_a_run_in_one_process(simulation, tiny_recipe, tmp_path, part):
    tiny_recipe["clients"] += [{**entry, "name": f"{entry['name']}-2"} for entry in list(tiny_recipe["clients"])]
    tiny_recipe["participation"] = {"fraction": part, "minimum": 4 if part == 1.0 else 2}
    tiny_recipe["training"]["learning_rate"] = 1e-3
    # On layers this small a fifth of B may be nearly singular, and an undamped inverse takes off.
    tiny_recipe["method"] = {"name": "fedsrd", "damping": 0.1}
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe))
    output = simulate(simulation, file, tmp_path / "run", 4)
    command = ["fedsrd", "run", str(file), "--out", str(tmp_path / "calm")]
    subprocess.run(command, check=True, env=simulation.env, capture_output=True, timeout=200)
    adapters = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("run", "calm")]
    assert adapters[0] == adapters[1]
    one, other = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("run", "calm"))
    same = ("digest", "bytes_up", "bytes_down", "final", "clients")
    assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert "Traceback" not in output
    # A simulation's clients leave nothing behind.
    assert not list((simulation.home / "state").glob("*"))


def test_a_masked_simulation_gives_the_states_of_one_process(simulation, tiny_recipe, tmp_path):
    tiny_recipe["clients"] += [{**entry, "name": f"{entry['name']}-2"} for entry in list(tiny_recipe["clients"])]
    tiny_recipe["method"] = {"name": "cyclic", "period": 2}
    tiny_recipe["wire"] = {"sum": {"levels": 7}}
    tiny_recipe["privacy"] = {"secure_aggregation": {"threshold": 3}}
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe))
    output = simulate(simulation, file, tmp_path / "run", 4)
    command = ["fedsrd", "run", str(file), "--out", str(tmp_path / "calm")]
    subprocess.run(command, check=True, env=simulation.env, capture_output=True, timeout=200)
    one, other = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("run", "calm"))
    assert {key: one[key] for key in ("digest", "final")} == {key: other[key] for key in ("digest", "final")}
    assert "Traceback" not in output


def test_the_trl_example_stopped_and_started_again_ends_in_the_bytes_of_one_process(simulation, tmp_path, monkeypatch):
    from test_trl_example import EXAMPLE, SETTINGS, run

    app = simulation.home / "notes-app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    started = subprocess.Popen(
        flwr_run(tmp_path, "torn"), cwd=app, env=simulation.env, stdout=subprocess.PIPE, text=True
    )
    output = ""
    for line in started.stdout:
        output += line
        if "[ROUND 2/4]" in line:
            break
    run_id = re.search(r"started run (\d+)", output)[1]
    subprocess.run(["flwr", "stop", run_id], cwd=app, env=simulation.env, check=True, capture_output=True, timeout=60)
    started.communicate(timeout=60)
    done = subprocess.run(
        flwr_run(tmp_path, "torn"), cwd=app, env=simulation.env, capture_output=True, text=True, timeout=300
    )
    assert "Going on after round" in done.stdout, done.stdout + done.stderr
    assert "round 4: loss" in done.stdout
    assert not [place for place in (simulation.home / "state").glob("*") if place.name != "audit"]
    run(
        EXAMPLE,
        tmp_path / "state",
        monkeypatch,
        rounds=4,
        steps=SETTINGS["steps"],
        **{"save-to": str(tmp_path / "calm")},
    )
    found = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("torn", "calm")]
    assert found[0] == found[1]


def flwr_run(folder, name):
    settings = f"rounds=4 checkpoint='{folder / 'kept'}' save-to='{folder / name}'"
    return ["flwr", "run", ".", "--stream", "--federation-config", "num-supernodes=2", "--run-config", settings]


def test_in_a_simulation_too_a_client_without_the_mod_is_told_in_a_line(simulation, tmp_path):
    from test_trl_example import EXAMPLE

    app = simulation.home / "notes-app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    file = app / "notes" / "client_app.py"
    file.write_text(file.read_text().replace("mods=[fedsrd_mod]", ""))
    done = subprocess.run(
        flwr_run(tmp_path, "none"), cwd=app, env=simulation.env, capture_output=True, text=True, timeout=300
    )
    reason = (
        r"FederationError: 0 of at least 2 clients can take part .*: KeyError: 'arrays' \(does its ClientApp have mods"
    )
    assert re.search(reason, done.stdout), done.stdout + done.stderr
