"""The ServerApp of FedSRD: what `flwr run .` starts. Its settings are the run config (`server.serve`)."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsrd.threads import wait_briefly

wait_briefly()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the federation; a user's mistake ends in its message alone."""
    import sys

    from fedsrd.errors import FedSRDError
    from fedsrd.flower.server import serve
    from fedsrd.text import printable

    try:
        serve(grid, context.run_config)
    except FedSRDError as error:
        print(printable(f"fedsrd: {error}"), file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None
