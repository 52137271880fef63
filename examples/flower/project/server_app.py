"""The ServerApp. FedSRD is the two lines that say so; before, they said FedAvg."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict

from fedsrd.flower import FedSRD  # FedSRD
from project.task import load

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds and saves the adapter."""
    model, _ = load(str(context.run_config["model"]))
    strategy = FedSRD(fraction_evaluate=0.0)  # FedSRD
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    result = strategy.start(grid, arrays, num_rounds=int(context.run_config["rounds"]))
    for number, metrics in result.train_metrics_clientapp.items():
        print(f"round {number}: loss {metrics['train_loss']:.3f}, {metrics['uplink-bytes']} bytes up")
