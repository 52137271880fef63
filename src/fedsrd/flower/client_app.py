"""The ClientApp of FedSRD: what a SuperNode runs. Settings come from the site (`site`), tasks from the server."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answers one of the server's messages."""
    from fedsrd.flower.node import respond
    from fedsrd.flower.workshop import RecipeWorkshop

    return respond(message, context, RecipeWorkshop())
