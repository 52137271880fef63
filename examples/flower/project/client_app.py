"""The ClientApp. FedSRD is the two lines that say so."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from fedsrd.flower import fedsrd_mod  # FedSRD
from project.task import fit, load

app = ClientApp(mods=[fedsrd_mod])  # FedSRD


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains on this client's texts, from the arrays that came."""
    model, tokenizer = load(str(context.run_config["model"]))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    texts = [f"The sum of {i} and {context.node_config['partition-id']} is known here." for i in range(4)]
    loss = fit(model, tokenizer, texts)
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    metrics = MetricRecord({"num-examples": len(texts), "train_loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
