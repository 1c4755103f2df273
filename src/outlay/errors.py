"""Every error a user can meet, in one tree; ``str(error)`` is one line: the value, the limit, the way out.

::

    OutlayError
    ├── UsageError: MoneyError, UnknownItem, UnknownTask, UnknownModel, UnknownStrategy, UnknownStudy
    ├── DataError: TaskFileError, StudyFileError, NoLabels, LabelError, LeakError, MissingData
    ├── SpendError: BudgetExceeded, AlreadyPaid, HoldError, LedgerDamaged
    ├── StoreError: ArtifactDamaged, QuotaExceeded, DiskFull
    ├── SellerError: UnknownOrder
    └── ClusterError, HubError, WorkFailed, RunFailed, TrainingError

The command line exits with 1 on each of them; 2 is click's. Nothing here imports anything.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank; without one, the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class OutlayError(Exception):
    """Base of every error `outlay` raises on purpose; ``str(e)`` is one line fit for a user."""


class UsageError(OutlayError):
    """A request that is wrong in itself."""


class MoneyError(UsageError):
    """An amount or a budget that cannot be read or spent."""


class UnknownItem(UsageError):
    """A price that no price book lists."""


class UnknownTask(UsageError):
    """A task name or file that does not exist."""


class UnknownModel(UsageError):
    """A model reference that leads nowhere."""


class UnknownStrategy(UsageError):
    """A strategy that does not exist."""


class UnknownStudy(UsageError):
    """A study name, study file or scale that does not exist."""


class DataError(OutlayError):
    """Data that cannot be trusted."""


class TaskFileError(DataError):
    """A task file that does not fit the schema."""


class StudyFileError(DataError):
    """A study file that does not fit the schema, or asks for what cannot be."""


class NoLabels(DataError):
    """Rows of which none has a label, where nothing says which labels are to be bought."""


class LabelError(DataError):
    """A label outside the label set."""


class LeakError(DataError):
    """Test or dev rows inside train or a pool."""


class MissingData(DataError):
    """A file that is not there, empty, half-written or has another sha256."""


class SpendError(OutlayError):
    """Money that must not move."""


class BudgetExceeded(SpendError):
    """A hold larger than what is left."""


class AlreadyPaid(SpendError):
    """A key that this run has settled before."""


class HoldError(SpendError):
    """A hold that is closed, foreign or unknown."""


class LedgerDamaged(SpendError):
    """A ledger whose chain, sums or anchor do not agree."""


class StoreError(OutlayError):
    """A problem with artifacts on disk."""


class ArtifactDamaged(StoreError):
    """Bytes that do not match their digest."""


class QuotaExceeded(StoreError):
    """A full disk quota."""


class DiskFull(StoreError):
    """A full device."""


class SellerError(OutlayError):
    """A seller of labels that could not deliver."""


class UnknownOrder(SellerError):
    """An order that the seller never took."""


class ClusterError(OutlayError):
    """Machines that cannot be reached, or do not get a job done."""


class HubError(OutlayError):
    """A model hub that cannot be reached, or refuses."""


class WorkFailed(OutlayError):
    """A worker's task that ended with another error than these; its traceback is the error's note."""


class RunFailed(OutlayError):
    """A run that ended without a score, where one is asked for."""


class TrainingError(OutlayError):
    """A training that cannot go on."""
