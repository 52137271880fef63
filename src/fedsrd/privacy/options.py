"""What a recipe asks for: the keys of its [privacy] table."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Epsilon = Annotated[float, Field(gt=0, le=1e6)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Noise = Annotated[float, Field(gt=0, le=1e6)]
Norm = Annotated[float, Field(gt=0, le=1e12)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SecureAggregation(_Options):
    """The server learns the sum of the updates and no update (Bonawitz et al., CCS 2017, ePrint 2017/281).

    Attributes:
        threshold: clients of a round that must stay to its end; more than half of those asked. With fewer, the round
            is repeated and nothing is learnt.
    """

    threshold: Annotated[int, Field(ge=2, le=1 << 16)]


class ExamplePrivacy(_Options):
    """Differential privacy of examples: DP-SGD at every client (Abadi et al., CCS 2016, arXiv 1607.00133).

    Attributes:
        noise_multiplier: standard deviation of the noise in a step's sum of gradients, in clips.
        epsilon: what the whole run may spend; the noise follows from it. One of the two.
        delta: chance beyond epsilon; less than one over the number of examples.
        clip: L2 norm to which one example's gradient is scaled down.
    """

    noise_multiplier: Noise | None = None
    epsilon: Epsilon | None = None
    delta: Delta = 1e-5
    clip: Norm = 1.0

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("expected noise_multiplier or epsilon, one of the two")
        return self


class SitePrivacy(_Options):
    """What a site's data may ever give away, by the site's own rules; no recipe has a say in it.

    Attributes:
        epsilon: of all training on this site's data together, in all runs.
        delta: chance beyond epsilon; less than one over the number of examples.
        rounds: of training under this budget, in all runs; None: as many as epsilon allows.
        noise_multiplier: the least noise with which this site trains. A recipe with less trains here with this; without
            it, a recipe that asks for no privacy of examples is refused.
        clip: the clip of this site's training, instead of the recipe's; None: the recipe's, or 1.
        tell_loss: whether the mean training loss may be told, where the recipe asks for it.
    """

    epsilon: Epsilon
    delta: Delta
    rounds: Annotated[int, Field(ge=1, le=10**9)] | None = None
    noise_multiplier: Noise | None = None
    clip: Norm | None = None
    tell_loss: bool = False


class ClientPrivacy(_Options):
    """Differential privacy of clients (McMahan et al., arXiv 1710.06963): whole updates are clipped at the client, and
    noise is in their mean: the server's, or with secure aggregation a share of every client's.

    Attributes:
        noise_multiplier: standard deviation of the noise in the sum of the updates, in clips.
        delta: chance beyond the epsilon that is accounted for.
        clip: L2 norm to which an update is scaled down.
    """

    noise_multiplier: Noise
    delta: Delta = 1e-5
    clip: Norm = 1.0


class PrivacySection(_Options):
    """What is kept from whom; nothing unless it is said."""

    secure_aggregation: SecureAggregation | None = None
    examples: ExamplePrivacy | None = None
    clients: ClientPrivacy | None = None
