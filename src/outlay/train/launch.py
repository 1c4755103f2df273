"""`python -m outlay.train.launch`: torch's own launcher (`python -m torch.distributed.run`) without its report of a failure.

Each process has printed its error in one line; the report would bury it.
"""

from __future__ import annotations

import logging
import sys

from outlay.library_warnings import hide_deprecations


def main(arguments: list[str]) -> int:
    """Start the processes and wait for them; return the exit code of the first that failed, 130 after Ctrl-C."""
    hide_deprecations()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as launch

    logging.disable(logging.CRITICAL)
    try:
        launch(arguments)
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
