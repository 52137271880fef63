"""The ServerApp. FedSRD is the two lines that say so; before, they said FedAvg."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from fedsrd.flower import FedSRD  # FedSRD
from notes.task import load_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds, prints them, and saves the adapter."""
    config = context.run_config
    model, _ = load_model(str(config["model"]))
    strategy = FedSRD(damping=0.1, checkpoint=config["checkpoint"] or None)  # FedSRD
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({"lr": float(config["learning-rate"])}),
    )
    for number, trained in result.train_metrics_clientapp.items():
        held_out = result.evaluate_metrics_clientapp[number]
        print(f"round {number}: loss {trained['train_loss']:.3f}, held out {held_out['eval_loss']:.3f}")
    if config["save-to"]:
        set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
        model.save_pretrained(str(config["save-to"]))
