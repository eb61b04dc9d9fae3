"""Everything a training will read is read once before the first step: what is broken is told now and not after hours."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial

from activeseg.errors import DataError
from activeseg.nn.data import LabeledImage, Samples, UnlabeledImage, UnlabeledSamples, load_checked
from activeseg.nn.decoding import default_readers
from activeseg.nn.prefetch import map_ahead


def require_readable(samples: Samples, validation: Sequence[LabeledImage]) -> None:
    """Raise the error of the first image or mask that cannot be read or does not fit."""
    check = partial(load_checked, label_set=samples.label_set)
    readers = default_readers()
    _exhaust(map_ahead(samples.__getitem__, range(len(samples)), workers=readers, ahead=2 * readers))
    _exhaust(map_ahead(check, validation, workers=readers, ahead=2 * readers))


def _exhaust(results: Generator[object, None, None]) -> None:
    with closing(results):
        for _ in results:
            pass


def readable(images: Sequence[UnlabeledImage], samples: Samples) -> tuple[UnlabeledSamples, dict[int, str]]:
    """Those of the unlabelled images that can be read, beside `samples` in memory, and by id why the others cannot.

    A broken image of the pool stops nothing; it is told in the log.
    """
    given = UnlabeledSamples(images, samples.policy, samples.kept)
    readers = default_readers()
    with closing(map_ahead(partial(_problem, given), range(len(given)), workers=readers, ahead=2 * readers)) as found:
        problems = list(found)
    left_out = {image.image_id: why for image, why in zip(images, problems, strict=True) if why is not None}
    if left_out:
        first = next(iter(left_out.values()))
        count = f"{len(left_out)} of {len(images)} unlabelled images"
        logging.getLogger(__name__).warning("%s cannot be read and are left out: %s", count, first)
    kept = [image for image, why in zip(images, problems, strict=True) if why is None]
    return UnlabeledSamples(kept, samples.policy, samples.kept), left_out


def _problem(samples: UnlabeledSamples, position: int) -> str | None:
    try:
        samples[position]
    except DataError as error:
        return str(error)
    return None
