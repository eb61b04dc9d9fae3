"""Every error activeseg raises on purpose, drawn as a tree.

    ActivesegError                 one line for the user: what was expected, what came, what to do
    ├── ConfigError                a setting, a class list or an argument is wrong
    │   ├── SourceGoneError        the place that images come from is away: a disk, a share, an object store
    │   └── DivergedError          training went to values that are no numbers
    ├── SchemaError                the database's schema is not the one this version knows
    ├── NotReadyError              a step lacks what an earlier one makes (no champion, empty pool)
    ├── DataError                  bytes from outside that cannot be used; usually a quarantine row
    │   ├── ImageError             an image that cannot or must not be decoded
    │   ├── MaskError              a mask of the wrong size or with unknown values
    │   ├── AnnotationError        an annotation that does not describe its image
    │   └── SaliencyError          a saliency map that points nowhere
    ├── AddressRefused             an address that must not be asked, or an answer larger or slower than is allowed
    ├── CheckpointError            weights that are missing, altered or of another network
    ├── LabelSetMismatch           classes differ between database, checkpoint and Label Studio
    ├── NonFiniteScoreError        a score that is NaN or infinite: it raises, it never ranks
    ├── DeviceMemoryError          the device's memory is too small even for one image
    ├── DeviceLostError            a process that computed on a device ended before its work did
    ├── NoRoomError                a disk is full, or too full to begin
    ├── LabelStudioError           Label Studio answered with something unusable
    │   ├── LabelStudioUnreachable no answer at all
    │   ├── LabelStudioUnauthorized the token was refused
    │   ├── LabelStudioRefused     a request was refused: nothing was done
    │   └── LabelStudioDoubt       a creating call may or may not have taken effect
    ├── AlertError                 an alert that could not be sent
    └── LeaseError                 another process is working on this database

The command line prints `str(error)` on one line and exits with status 1; anything else is a bug and shows its
traceback.
"""


class ActivesegError(Exception):
    """Base of all errors a user can act on."""


class ConfigError(ActivesegError, ValueError):
    """A setting, class list or argument is wrong."""


class SourceGoneError(ConfigError):
    """The place that images come from does not answer, or is not there: that says nothing about any image of it."""


class DivergedError(ConfigError):
    """Training went to values that are no numbers; from the same state it would again."""


class SchemaError(ActivesegError):
    """The database's schema is not the one this version knows."""


class NotReadyError(ActivesegError):
    """A step lacks what an earlier one makes."""


class DataError(ActivesegError, ValueError):
    """Bytes from outside cannot be used."""


class ImageError(DataError):
    """An image cannot or must not be decoded."""


class MaskError(DataError):
    """A mask has the wrong size or unknown values."""


class AnnotationError(DataError):
    """An annotation does not describe its image."""


class SaliencyError(DataError):
    """A saliency map points nowhere: there is nothing to cut out."""


class AddressRefused(ActivesegError):
    """An address must not be asked, or answers with more than is allowed."""


class CheckpointError(ActivesegError):
    """Weights are missing, altered or belong to another network."""


class LabelSetMismatch(ActivesegError):
    """Classes differ between database, checkpoint and Label Studio."""


class NonFiniteScoreError(ActivesegError, ArithmeticError):
    """A score is NaN or infinite."""


class DeviceMemoryError(ActivesegError):
    """The memory of the device, or of the machine, is too small even for one image."""


class DeviceLostError(ActivesegError):
    """A process that computed on a device ended before its work did."""


class NoRoomError(ActivesegError):
    """A disk is full, or so full that nothing is begun on it. What was done stays; the next run goes on."""


class LabelStudioError(ActivesegError):
    """Label Studio answered with something unusable."""


class LabelStudioUnreachable(LabelStudioError):
    """Label Studio did not answer."""


class LabelStudioUnauthorized(LabelStudioError):
    """Label Studio refused the token."""


class LabelStudioRefused(LabelStudioError):
    """Label Studio refused a request; nothing was done."""


class LabelStudioDoubt(LabelStudioError):
    """A creating call may or may not have taken effect; look before calling again."""


class AlertError(ActivesegError):
    """An alert could not be sent."""


class LeaseError(ActivesegError):
    """Another process is working on this database."""
