"""Seconds a round over links as sites have them: SuperLink here, each SuperNode in a network namespace of its own whose
link is shaped by the kernel (tc tbf). Linux, root, iproute2; `pip install -e .[flower]`.

    python benchmarks/links.py [--up 10mbit] [--down 50mbit] [--rounds 4] [--store benchmarks/results/links.json]

Delay needs the kernel's netem, which not every machine has: with it, each direction gets half of --delay; without it,
the table says that there is none.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord

REPOSITORY = Path(__file__).parents[1]
RUNS = [("fedavg", "float32"), ("fedsrd", "float32"), ("fedsrd", "int4")]
SITES = ["code", "medical", "finance"]
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1",
}


def sh(*command: str, check: bool = True) -> bool:
    """Runs a command; whether it worked."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.returncode == 0


class Links:
    """One namespace a site, with its shaped link; gone at the end."""

    def __init__(self, up: str | None, down: str | None, delay: str) -> None:
        self.delayed = False
        for place, site in enumerate(SITES):
            here, there, space = f"fsrd{place}", f"fsrd{place}n", f"fsrd-{site}"
            sh("ip", "netns", "add", space)
            sh("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            sh("ip", "link", "set", there, "netns", space)
            sh("ip", "addr", "add", f"10.77.{place}.1/24", "dev", here)
            sh("ip", "link", "set", here, "up")
            inside = ("ip", "netns", "exec", space)
            sh(*inside, "ip", "addr", "add", f"10.77.{place}.2/24", "dev", there)
            sh(*inside, "ip", "link", "set", there, "up")
            sh(*inside, "ip", "link", "set", "lo", "up")
            for prefix, device, rate in ((inside, there, up), ((), here, down)):
                if rate is None:
                    continue
                shape = ("rate", rate, "burst", "32kbit", "latency", "400ms")
                sh(*prefix, "tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "tbf", *shape)
                netem = ("parent", "1:1", "netem", "delay", f"{int(delay.removesuffix('ms')) // 2}ms")
                self.delayed = sh(*prefix, "tc", "qdisc", "add", "dev", device, *netem, check=False)

    def close(self) -> None:
        """Takes the namespaces away, and the links with them."""
        for place, site in enumerate(SITES):
            sh("ip", "link", "del", f"fsrd{place}", check=False)
            sh("ip", "netns", "del", f"fsrd-{site}", check=False)


def federation(method: str, values: str, rounds: int, home: Path) -> tuple[list[RoundRecord], list[float]]:
    """Runs one method over the links that are there; the rounds' records, and their wall seconds."""
    env = {**ENV, "FLWR_HOME": str(home / "flwr")}
    (home / "flwr").mkdir(parents=True)
    (home / "flwr" / "config.toml").write_text('[superlink.here]\naddress = "127.0.0.1:8770"\ninsecure = true\n')
    app = home / "app"
    app.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, app / name)
    shutil.copytree(REPOSITORY / "src", app / "src", ignore=shutil.ignore_patterns("__pycache__"))
    started = []

    def start(*command: str) -> None:
        with (home / "output").open("ab") as stream:
            started.append(
                subprocess.Popen(command, env=env, cwd=home, stdout=stream, stderr=stream, start_new_session=True)
            )

    try:
        port = ("--host", "0.0.0.0", "--port", "8770")
        start("flower-superlink", "--insecure", *port, "--disable-runtime-dependency-installation")
        time.sleep(10)
        for place, site in enumerate(SITES):
            config = f'client="{site}" data="embedded:{site}" state="{home}/state"'
            address = ("--superlink", f"10.77.{place}.1:8770", "--node-config", config)
            start("ip", "netns", "exec", f"fsrd-{site}", "flower-supernode", "--insecure", *address)
        changes = [
            f'method={{name="{method}"}}',
            f'wire={{uplink={{values="{values}"}},downlink={{values="{values}"}}}}',
            f"rounds={rounds}",
            "training.steps=1",
            "training.batch_size=1",
            "evaluation.sets=[]",
            "participation.minimum=3",
            'clients=[{name="code"},{name="medical"},{name="finance"}]',
        ]
        settings = f"set='{'; '.join(changes)}' out='{home}/run' keep-payloads=false"
        done = subprocess.run(
            ["flwr", "run", str(app), "here", "--stream", "--run-config", settings],
            env=env,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        if not (home / "run" / "summary.json").is_file():
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:] + (home / "output").read_text()[-3000:])
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    records = RunFolder(home / "run").records()[1:]
    events = [json.loads(line) for line in (home / "run" / "log.jsonl").read_text().splitlines()]
    walls = []
    for record in records:
        own = [event for event in events if event.get("round") == record.round]
        asked = [event["time"] for event in own if event["event"] == "asked"]
        answered = [event["time"] for event in own if event["event"] == "answered"]
        walls.append(max(answered) - min(asked))
    return records, walls


def main() -> None:
    """Both methods, over shaped links and over free ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--up", default="10mbit")
    parser.add_argument("--down", default="50mbit")
    parser.add_argument("--delay", default="40ms", help="there and back")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    rows, delayed = [], False
    for shaped, methods in ((True, RUNS), (False, RUNS[:1] + RUNS[-1:])):
        for method, values in methods:
            links = Links(given.up if shaped else None, given.down if shaped else None, given.delay)
            delayed = delayed or links.delayed
            try:
                with tempfile.TemporaryDirectory() as home:
                    records, seconds = federation(method, values, given.rounds, Path(home))
            finally:
                links.close()
            walls = [round(wall, 1) for wall in seconds]
            # The first round has no broadcast yet.
            mean = [sum(record.bytes_up.values()) / len(record.bytes_up) for record in records[1:]]
            down = [sum(record.bytes_down.values()) / len(SITES) for record in records[1:-1]]
            row = {
                "method": method,
                "values": values,
                "links": f"{given.up} up, {given.down} down" if shaped else "free",
                "seconds": walls,
                "median_seconds": statistics.median(walls[1:]),
                "mib_up": statistics.mean(mean) / (1 << 20),
                "mib_down": statistics.mean(down) / (1 << 20),
            }
            rows.append(row)
            print(json.dumps(row))
    found = {
        "command": "python benchmarks/links.py " + " ".join(sys.argv[1:]),
        "delay": given.delay if delayed else "none: this machine's kernel has no netem",
        "cores": os.cpu_count(),
        "rows": rows,
    }
    if given.store:
        given.store.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
