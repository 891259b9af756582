"""Reads the next item while the device is busy with the present one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from dataset.common import LoaderItem


class ReadAhead(Iterator[LoaderItem]):
    """The items in their order.

    What reading raises, the end included, is raised when the item is asked for, so that the step before it counts.
    """

    def __init__(self, items: Iterable[LoaderItem], prepare: Callable[[LoaderItem], None]) -> None:
        self.items, self.prepare = iter(items), prepare
        self.upcoming: Future[LoaderItem] | None = None

    def read_next(self) -> None:
        """Take the next item already now, and prepare it."""
        if self.upcoming is not None:
            return
        self.upcoming = Future()
        try:
            item = next(self.items)
            self.prepare(item)
        except Exception as error:  # noqa: BLE001 - it is raised when its turn comes
            self.upcoming.set_exception(error)
        else:
            self.upcoming.set_result(item)

    def __next__(self) -> LoaderItem:
        if self.upcoming is None:
            return next(self.items)
        upcoming, self.upcoming = self.upcoming, None
        return upcoming.result()
