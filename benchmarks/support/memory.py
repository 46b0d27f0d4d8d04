"""A process's own memory, and its peak."""

import gc
import threading
from pathlib import Path
from types import TracebackType


def anonymous_bytes() -> int:
    """Return the bytes that this process has for itself: RssAnon of ``/proc/self/status``.

    Without the pages of mapped files, which the system takes back when it needs them.

    Example:
        >>> anonymous_bytes() > 1_000_000
        True
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


class PeakMemory:
    """Watches this process's own memory, every 2 ms, while its ``with`` block runs.

    Attributes:
        before: Bytes when the block began.
        highest: The most bytes since.

    Example:
        >>> import mmap
        >>> with PeakMemory() as memory:
        ...     much = mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE)
        ...     much[:] = b"1" * 50_000_000
        >>> memory.extra > 25_000_000
        True
    """

    def __init__(self) -> None:
        self.before = self.highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def extra(self) -> int:
        """How many bytes the peak lies above what there was before."""
        return self.highest - self.before

    def __enter__(self) -> "PeakMemory":
        gc.collect()  # garbage that is freed in the block would hide what the block takes
        self.before = self.highest = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, anonymous_bytes())

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.highest = max(self.highest, anonymous_bytes())
