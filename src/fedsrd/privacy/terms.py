"""On which terms a client trains: what the recipe asks for and what the site's own rules say, the stricter of both."""

import importlib.util
from dataclasses import dataclass

from fedsrd.errors import PrivacyError
from fedsrd.privacy.accounting import noise_multiplier
from fedsrd.privacy.options import ExamplePrivacy, SitePrivacy


@dataclass(frozen=True)
class Terms:
    """What training under differential privacy of examples goes by.

    Attributes:
        noise_multiplier: in clips.
        clip: L2 norm of an example's gradient.
        delta: of what the run says of itself.
        run_epsilon: what the run may spend; None: it says nothing.
        tell_loss: whether the mean loss is told.
    """

    noise_multiplier: float
    clip: float
    delta: float
    run_epsilon: float | None
    tell_loss: bool


def needed() -> None:
    """Raises PrivacyError where a package that differential privacy goes by is not installed."""
    for package in ("opacus", "dp_accounting", "cryptography"):
        if importlib.util.find_spec(package) is None:
            raise PrivacyError(f'differential privacy needs the package {package}: pip install "fedsrd[privacy]"')


def agreed(asked: ExamplePrivacy | None, site: SitePrivacy | None, rate: float, steps: int) -> Terms | None:
    """The terms; None where neither asks for any.

    Args:
        asked: the recipe's.
        site: the site's own.
        rate: chance of each example to be in a step.
        steps: of the whole run.

    Raises:
        PrivacyError: the site trains with privacy only, the recipe asks for none, and the site's rules give no noise
            for that; or the recipe's epsilon cannot be had.
    """
    if asked is None and site is None:
        return None
    needed()
    least = None if site is None else site.noise_multiplier
    if asked is None:
        if site is None or least is None:
            raise PrivacyError(
                "this site trains under differential privacy of examples only, and the recipe has no "
                "[privacy.examples]; the recipe gets one, or the site's rules a privacy.noise_multiplier"
            )
        return Terms(least, site.clip or 1.0, site.delta, None, tell_loss=False)
    noise = asked.noise_multiplier
    if noise is None:
        assert asked.epsilon is not None
        noise = noise_multiplier(asked.epsilon, asked.delta, rate, steps)
    clip = asked.clip if site is None or site.clip is None else site.clip
    tells = asked.tell_loss and (site is None or site.tell_loss)
    return Terms(max(noise, least or 0.0), clip, asked.delta, asked.epsilon, tells)
