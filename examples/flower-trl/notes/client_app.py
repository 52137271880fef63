"""The ClientApp: TRL's SFTTrainer on this site's rows. FedSRD is the two lines that say so."""

from tempfile import TemporaryDirectory

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from fedsrd.flower import fedsrd_mod  # FedSRD
from notes.task import load_model, make_trainer

app = ClientApp(mods=[fedsrd_mod])  # FedSRD


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains from the arrays that came, and gives them back trained."""
    model, tokenizer = load_model(str(context.run_config["model"]))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    config = message.content["config"]
    with TemporaryDirectory() as folder:
        trainer = make_trainer(
            model,
            tokenizer,
            int(context.node_config["partition-id"]),
            folder,
            learning_rate=float(config["lr"]),
            max_steps=int(context.run_config["steps"]),
            seed=int(config["server-round"]),
        )
        result = trainer.train()
    metrics = {"train_loss": result.training_loss, "num-examples": len(trainer.train_dataset)}
    content = {"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The loss of the arrays that came, on this site's held-out rows."""
    model, tokenizer = load_model(str(context.run_config["model"]))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    with TemporaryDirectory() as folder:
        trainer = make_trainer(model, tokenizer, int(context.node_config["partition-id"]), folder)
        found = trainer.evaluate()
    metrics = {"eval_loss": found["eval_loss"], "num-examples": len(trainer.eval_dataset)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
