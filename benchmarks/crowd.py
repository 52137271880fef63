"""Many clients on Flower's simulation, with a tiny model: the server's memory, and seconds a round, by the
number of answers. `pip install -e .[simulation]`.

    python benchmarks/crowd.py [--clients 200] [--rounds 6] [--fractions 0.1,0.25,0.5,1.0] [--store FILE.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tomli_w

from fedsrd.runs.folder import RunFolder

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "helpers"))

import tiny  # noqa: E402

ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}


def recipe(home: Path, clients: int, rounds: int, fraction: float) -> Path:
    """A recipe of that many clients, with 4 examples each."""
    for place in range(clients):
        rows = [{"instruction": f"add {i} and {place}", "response": f"{i + place}"} for i in range(4)]
        (home / f"c{place}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "crowd",
        "rounds": rounds,
        "model": {"id": str(home / "model"), "dtype": "float32", "device": "cpu"},
        "lora": {"rank": 4, "alpha": 8},
        "training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-4, "max_length": 64, "prompt": "plain"},
        "method": {"name": "fedsrd"},
        "participation": {"fraction": fraction, "minimum": max(1, round(fraction * clients))},
        "clients": [
            {"name": f"c{place}", "data": {"source": str(home / f"c{place}.jsonl")}} for place in range(clients)
        ],
    }
    file = home / f"crowd-{fraction}.toml"
    file.write_text(tomli_w.dumps(tree))
    return file


def run(home: Path, file: Path, clients: int) -> list[dict]:
    """Runs it; one row a round."""
    out = home / file.stem
    settings = f"recipe='{file}' out='{out}'"
    nodes = f"num-supernodes={clients} client-resources-num-cpus=1"
    done = subprocess.run(
        ["flwr", "run", str(REPOSITORY), "--stream", "--federation-config", nodes, "--run-config", settings],
        env={**ENV, "FLWR_HOME": str(home / "flwr"), "FEDSRD_STATE": str(home / "state")},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    if not (out / "summary.json").is_file():
        raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = []
    for event in events:
        if event["event"] != "round" or event["round"] == 0:
            continue
        own = [one for one in events if one.get("round") == event["round"] and one["event"] in ("asked", "answered")]
        times = [one["time"] for one in own]
        answers = sum(one["event"] == "answered" for one in own)
        rows.append(
            {
                "round": event["round"],
                "answers": answers,
                "seconds": round(max(times) - min(times), 2),
                "server_seconds": round(event["time"] - max(times), 2),
                "memory_mib": event["memory_mib"],
            }
        )
    settled = {one["digest"] for one in events if one["event"] == "settled"}
    if settled != {RunFolder(out).summary().digest}:
        raise SystemExit(f"digests differ: {settled}")
    return rows


def main() -> None:
    """One run a fraction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--fractions", default="0.1,0.25,0.5,1.0")
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tiny.make(home / "model")
        for fraction in map(float, given.fractions.split(",")):
            rows = run(home, recipe(home, given.clients, given.rounds, fraction), given.clients)
            seconds = statistics.median(row["seconds"] for row in rows[1:])
            found.append({"fraction": fraction, "answers": rows[-1]["answers"], "seconds": seconds, "rounds": rows})
            memory = " ".join(f"{row['memory_mib']:.0f}" for row in rows)
            print(
                f"{rows[-1]['answers']:4d} answers a round: {seconds:7.2f} s; server's memory, MiB: {memory}",
                flush=True,
            )
        subprocess.run(["pkill", "-f", str(home)], check=False)
    if given.store:
        about = {"command": "python benchmarks/crowd.py " + " ".join(sys.argv[1:]), "cores": os.cpu_count()}
        given.store.write_text(json.dumps({**about, "runs": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
