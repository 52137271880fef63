"""Speed: `make bench` (all, some tens of minutes), `make bench-quick` (small shapes, under two minutes, to see that it
works).

    python benchmarks/bench.py [NAME ...] [--quick] [--store FOLDER]

Names: startup, server, plain, close, sparsify, apply, codec, clients, packed, secure, sums, training, rounds. Sizes:
benchmarks/wire.py.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Runs the named benchmarks, or all."""
    import client
    import clients
    import close
    import codec
    import rounds
    import secure
    import server
    import startup
    import sums
    from harness import show

    known = {
        "startup": startup.run,
        "server": server.run,
        "plain": server.run_plain,
        "close": close.run,
        "sparsify": client.run,
        "apply": client.run_apply,
        "codec": codec.run,
        "clients": clients.run,
        "packed": secure.run_packed,
        "secure": secure.run,
        "sums": sums.run,
        "training": rounds.run_training,
        "rounds": rounds.run,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--store", type=Path, help="folder for the JSON; without it nothing is stored")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    for name in given.names or known:
        command = f"python benchmarks/bench.py {name}{' --quick' if given.quick else ''}"
        show(name, known[name](given.quick), command, given.store)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
