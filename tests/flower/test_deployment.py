"""docs/deploy.md on loopback: TLS, keys, three sites as processes; killed and started again."""

import json
import random
import re
import shutil
import subprocess
import time

import pytest
from deployment import Deployment, block

from fedsrd.federation.remote.audit import Audit, chain
from fedsrd.runs.folder import RunFolder

pytestmark = pytest.mark.deployment
SITES = ["st-mary", "charite", "ucsf"]


def recipe(tiny_model, **more):
    """The page's recipe, on the tiny model."""
    text = block("toml", "recipe")
    text = text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_model))
    text = re.sub(r"^deadline = \d+", f"deadline = {more.pop('deadline', 90)}", text, flags=re.MULTILINE)
    for key, value in more.items():
        text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    return text + '\n[lora]\nrank = 4\nalpha = 8\n\n[method]\nname = "fedavg"\n'


@pytest.fixture
def deployment(tmp_path):
    home = tmp_path / "deploy"
    home.mkdir()
    made = Deployment(home, SITES)
    yield made
    made.stop()


def test_three_sites_and_one_that_is_killed_and_comes_back(deployment, tiny_model):
    deployment.set_up(recipe(tiny_model))
    for site in SITES:
        deployment.supernode(site)
    deployment.run()
    deployment.wait_for_round(1)
    deployment.kill("ucsf")
    deployment.wait_for_round(3)
    deployment.supernode("ucsf")
    summary = deployment.wait_for_the_end()
    assert set(deployment.digests().values()) == {(6, summary.digest)}
    took_part = [set(record.bytes_up) for record in deployment.records()[1:]]
    assert all({"st-mary", "charite"} <= names for names in took_part)
    assert "ucsf" in took_part[0]
    assert any("ucsf" not in names for names in took_part[1:3])
    assert "ucsf" in took_part[-1]
    for site in SITES:
        state = deployment.folder(site) / "state"
        assert list(state.glob(f"*/{site}/adapter/adapter_model.safetensors"))
        left = [entry.line for entry, problem in chain(Audit(state / "audit").entries()) if problem is None]
        assert len(left) == left[-1].number
        assert {line.kind for line in left} == {"hello-reply", "train-reply", "sync-reply"}
        rounds = {line.round for line in left if line.payload}
        assert rounds >= {record.round for record in deployment.records()[1:] if site in record.bytes_up}
        assert all("loss" not in line.told and line.rules for line in left)
    assert "Round 6/6" in deployment.output
    assert "Traceback" not in deployment.output


def test_sites_that_send_nothing_but_masked_updates(deployment, tiny_model, tmp_path):
    """Keys, a peers file and rules; a site is killed in a round; the states are those of integers in the clear."""
    text = recipe(tiny_model, rounds=3, minimum=2, deadline=60)
    summed = text + "\n[wire.sum]\nlevels = 127\n"
    deployment.set_up(summed + "\n[privacy.secure_aggregation]\nthreshold = 2\n")
    deployment.agree()
    for site in SITES:
        deployment.supernode(site)
    deployment.run()
    deployment.wait_for_round(1)
    deployment.kill("ucsf")
    summary = deployment.wait_for_the_end(500)
    digests = deployment.digests()
    assert {digests[site] for site in SITES if site != "ucsf"} == {(3, summary.digest)}
    assert "ucsf" in deployment.records()[2].rejected
    for site in SITES:
        state = deployment.folder(site) / "state"
        left = [entry.line for entry, problem in chain(Audit(state / "audit").entries()) if problem is None]
        assert "secure-reply" in {line.kind for line in left}
        assert all(line.told.get("masked") for line in left if line.is_update)
        (kept,) = state.glob(f"*/{site}/session.json")
        assert (json.loads(kept.read_text())["client"] == "") == (site != "ucsf")
    # Of the first round all three are in the sum, as in one process.
    for site in SITES:
        data = deployment.folder(site) / "data.jsonl"
        summed = summed.replace(f'name = "{site}",', f'name = "{site}", data = {{ source = "{data}" }},')
    summed = re.sub(r'key = "[^"]*"', 'key = ""', summed).replace(', key = ""', "")
    (tmp_path / "calm.toml").write_text(summed)
    command = ["fedsrd", "run", str(tmp_path / "calm.toml"), "--out", str(tmp_path / "calm"), "--set", "rounds=1"]
    done = subprocess.run(command, env=deployment.env, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert deployment.records()[1].digest == RunFolder(tmp_path / "calm").records()[1].digest
    assert "Traceback" not in deployment.output


@pytest.mark.parametrize("seed", [0, 1])
def test_a_server_and_clients_that_are_killed_at_any_moment(deployment, tiny_model, tmp_path, seed):
    """SIGKILL for the server (SuperLink and ServerApp) or a SuperNode at random moments; everybody takes part in every
    round, so the adapter must be that of a run that nothing happened to.
    """
    moments = random.Random(seed)
    deployment.set_up(recipe(tiny_model, minimum=3, attempts=6, deadline=60))
    for site in SITES:
        deployment.supernode(site)
    deployment.run()
    killed = []
    for _ in range(3):
        now = len(deployment.records())
        deployment.wait_for(lambda now=now: len(deployment.records()) > now)
        time.sleep(moments.uniform(0, 15))
        victim = moments.choice(["server", *SITES])
        killed.append(victim)
        if victim == "server":
            for name in ("superlink", "run", "resume"):
                deployment.kill(name)
            deployment.superlink()
            deployment.run("resume")
        else:
            deployment.kill(victim)
            time.sleep(moments.uniform(0, 3))
            deployment.supernode(victim)
    if "server" not in killed:
        for name in ("superlink", "run", "resume"):
            deployment.kill(name)
        deployment.superlink()
        deployment.run("resume")
    summary = deployment.wait_for_the_end(500)
    assert set(deployment.digests().values()) == {(6, summary.digest)}
    # The same clients with the same data in one process.
    text = (deployment.server / "recipe.toml").read_text()
    for site in SITES:
        data = deployment.folder(site) / "data.jsonl"
        text = text.replace(f'name = "{site}",', f'name = "{site}", data = {{ source = "{data}" }},')
    (tmp_path / "calm.toml").write_text(text)
    command = ["fedsrd", "run", str(tmp_path / "calm.toml"), "--out", str(tmp_path / "calm")]
    subprocess.run(command, check=True, env=deployment.env, capture_output=True, timeout=300)
    calm = (tmp_path / "calm" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (deployment.server / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == calm, killed


def test_who_has_no_registered_key_or_no_tls_is_turned_away(deployment, tiny_model):
    deployment.set_up(recipe(tiny_model, rounds=1, minimum=1))
    stranger = deployment.home / "sites" / "stranger"
    stranger.mkdir()
    for name in ("ca.crt", "data.jsonl"):
        shutil.copy(deployment.folder("ucsf") / name, stranger / name)
    deployment.shell(block("sh", "site"), stranger, SITE="stranger")
    deployment.supernode("stranger")
    command = block("sh", "site", "background")
    keyless = command.replace("--auth-supernode-private-key node.key", "")
    plain = keyless.replace("--root-certificates ca.crt", "--insecure")
    assert keyless != command != plain != keyless
    for name, text, port in (("keyless", keyless, "9151"), ("plain", plain, "9152")):
        deployment.start(name, text, stranger, SITE=name, PORT=port)
    # Nor does a registered site have another's name: charite, which is there first, is left out as st-mary.
    lie = command.replace('client=\\"$SITE\\"', 'client=\\"st-mary\\"')
    assert lie != command
    deployment.start("liar", lie, deployment.folder("charite"), SITE="charite", PORT="9153")
    deployment.run()
    log = deployment.server / "run" / "log.jsonl"
    deployment.wait_for(lambda: log.is_file() and '"refused"' in log.read_text())
    deployment.supernode("st-mary")
    deployment.wait_for_the_end()
    assert set(deployment.records()[1].bytes_up) == {"st-mary"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["client"] for line in lines if line["event"] == "joined"] == ["st-mary"]
    refused = [line["reason"] for line in lines if line["event"] == "refused"]
    assert refused
    assert all("does not hold the key of st-mary in the recipe" in reason for reason in refused)
    for name in ("stranger", "keyless", "plain"):
        assert "Receiving" not in (stranger / f"{name}.out").read_text()
