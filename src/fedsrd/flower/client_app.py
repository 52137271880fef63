"""The ClientApp of FedSRD: what a SuperNode runs. Settings come from the site, tasks from the server."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsrd.threads import wait_briefly

wait_briefly()
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answers one of the server's messages."""
    from fedsrd.federation.remote.runtime import RecipeRuntime
    from fedsrd.flower.records import respond

    return respond(message, context, RecipeRuntime())
