"""What accompanies a training may fail: that is a warning, and the results are written."""

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from ..errors import UserError

log = logging.getLogger(__name__)


def may_fail(one: Any, methods: Iterable[str]) -> None:
    """Turn the first error in these methods of a callback or logger into a warning.

    It is called again the next time: a server, for example, may be back. Further errors are only
    in log.txt.
    """
    warned: list[str] = []
    for name in methods:
        vars(one)[name] = partial(_call, getattr(one, name), f"{type(one).__name__}.{name}", warned)


def _call(method: Any, name: str, warned: list[str], *args: Any, **kwargs: Any) -> None:
    try:
        method(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        if not warned:
            reason = " ".join(str(error).split())
            log.warning(f"{name} failed, the run continues: {type(error).__name__}: {reason}")
        warned.append(name)
        log.debug(name, exc_info=True)
