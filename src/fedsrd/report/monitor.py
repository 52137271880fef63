"""The server's view of a federation across a network: one line a client in the round, as it happens."""

import time
from typing import Any, Self

from rich import box
from rich.live import Live
from rich.table import Table

from fedsrd.report.screen import Screen, styled
from fedsrd.report.terminal import amount, loss_text
from fedsrd.runs.records import RoundRecord

STATES = {"asked": "working", "answered": "answered", "failed": "failed", "silent": "silent"}


class Monitor:
    """Shows rounds as they go: on a terminal a table that moves, in a log one line an event; either way one table a
    closed round stays. Use as a context manager.

    Args:
        console: where to.
        rounds: of the run.
    """

    def __init__(self, console: Screen, rounds: int) -> None:
        self.console = console
        self._rounds = rounds
        self._round = 0
        self._rows: dict[str, dict[str, Any]] = {}
        self._began = time.perf_counter()
        self._live = Live(console=console, get_renderable=self._table, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Starts the moving table."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes it away."""
        self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        elapsed = time.perf_counter() - self._began
        self.console.print(styled("dim", f"{elapsed:7.1f} s", f"  {text}"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """One loud line that stays."""
        self.console.print(styled("bold red", "warning", f"    {text}"), soft_wrap=True)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Evaluation, set by set: nothing to show."""

    def event(self, kind: str, **fields: Any) -> None:
        """What happened with a client (`flower.engine.Watch`)."""
        client = str(fields.get("client", fields.get("node", "")))
        if kind in STATES and "round" in fields:
            self._round = fields["round"]
            row = self._rows.setdefault(client, {"down": 0, "state": STATES[kind]})
            row["state"] = STATES[kind]
            if kind == "asked":
                row["down"] += fields["bytes"]
                row["began"] = time.perf_counter()
            else:
                row |= {"up": fields.get("bytes", 0), "seconds": fields["seconds"], "reason": fields.get("reason", "")}
                if not self.console.is_terminal:
                    self.say(f"round {self._round}/{self._rounds}  {client}  {self._line(row)}")
            return
        texts = {
            "joined": f"{client} is here, {_version(fields.get('held', -1))}",
            "left": f"{client} is gone",
            "refused": f"{client} is refused: {fields.get('reason')}",
            "settled": f"{client} {fields['reason']}" if fields.get("reason") else f"{client} is at the last version",
            "failed": f"{client}: {fields.get('reason')}",
        }
        if kind == "refused" or fields.get("resync"):
            self.warn(
                texts[kind] + (" that is not this run's; it gets the whole state" if fields.get("resync") else "")
            )
        else:
            self.say(texts.get(kind, f"{client}: {kind}"))

    def round_done(self, record: RoundRecord) -> None:
        """The table of a closed round."""
        if record.round == 0 or not self._rows:
            return
        for client, reason in record.rejected.items():
            self._rows.setdefault(client, {"down": 0, "state": "left out"})["reason"] = reason
            if self._rows[client].get("state") == "answered":
                self._rows[client]["state"] = "left out"
        self.console.print(self._table(record))
        if record.eval:
            self.say("NLL " + ", ".join(f"{name} {value:.2f}" for name, value in record.eval.items()))
        self._rows = {}

    def _line(self, row: dict[str, Any]) -> str:
        if row["state"] == "answered":
            return f"answered  up {amount(row['up'])}  {row['seconds']:.1f} s"
        return f"{row['state']}: {row['reason']}"

    def _table(self, record: RoundRecord | None = None) -> Table:
        loss = f", {loss_text(record.train_loss)}" if record else ""
        table = Table(title=f"Round {self._round}/{self._rounds}{loss}", box=box.SIMPLE, pad_edge=False)
        for column in ("client", "state", "up", "down", "seconds"):
            left = column in ("client", "state")
            table.add_column(column, justify="left" if left else "right", no_wrap=column != "state")
        # A copy: the moving table is drawn by a thread of its own.
        for client, row in list(self._rows.items()):
            seconds = row.get("seconds", time.perf_counter() - row.get("began", time.perf_counter()))
            reason = f": {row['reason']}" if row.get("reason") else ""
            table.add_row(
                client, row["state"] + reason, amount(row.get("up", 0)), amount(row["down"]), f"{seconds:.1f}"
            )
        return table


def _version(held: int) -> str:
    return "new" if held < 0 else f"with version {held}"
