"""Every error that a user can meet. Each says what was given, what was expected, and what to do.

The command line prints the message alone and exits with the class's `exit_code`; a bare traceback is a bug of ours.

>>> raise RecipeError("lora.rank = 0: expected an integer of 1 or more")
Traceback (most recent call last):
    ...
fedsrd.errors.RecipeError: lora.rank = 0: expected an integer of 1 or more
"""


class FedSRDError(Exception):
    """Base of all errors that are the user's to mend, not a bug."""

    exit_code = 1


class RecipeError(FedSRDError):
    """The recipe is wrong: an unknown key, a wrong type, a value out of range."""

    exit_code = 2


class DataError(FedSRDError):
    """A data set is missing, empty, unreadable, or lacks what the recipe names."""

    exit_code = 2


class ModelError(FedSRDError):
    """The base model is missing, or cannot be adapted as the recipe asks."""

    exit_code = 2


class RunFolderError(FedSRDError):
    """The output folder holds another run, or another recipe's."""

    exit_code = 2


class PackageError(FedSRDError):
    """A package that carries a model or data could not be fetched, or is not the one that we know."""


class PayloadError(FedSRDError):
    """Bytes from the other side are not a payload that this receiver can take. Nothing was applied."""


class FederationError(FedSRDError):
    """The round cannot go on (no usable update, replicas differ). The last complete round is kept."""


class IdentityError(FedSRDError):
    """A site's key is missing, open to others, or no key."""

    exit_code = 2


class EvaluationError(FedSRDError):
    """A benchmark is unknown, cannot be read as it is, or cannot be run safely here."""

    exit_code = 2


class PrivacyError(FedSRDError):
    """What is asked would give away more than it may, or a privacy ledger cannot be read. Nothing was trained."""

    exit_code = 2


class RulesError(FedSRDError):
    """A site's own rules forbid what is asked, or cannot be read. Nothing was trained or sent."""

    exit_code = 2
