"""`lmcache-mp status --watch`: the report again and again, also while the server is away."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.link import Link
from lmcache_mp.cli.rates import Rates
from lmcache_mp.cli.screen import console, duration, page
from lmcache_mp.messages import Status, StatusReport

ANSWER_S = 2.0
"""How long one report may take; then the server counts as away."""
NEWS_S = 60.0
"""How long it is said that the server came back."""


def watch(link: Link, every_s: float) -> int:
    """Show the report every so many seconds until Ctrl-C, which is no failure."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminal gets its cursor back
    watched = Watched(lambda: link.call(Status(), ANSWER_S))
    with contextlib.suppress(KeyboardInterrupt), _shown(console()) as show:
        while True:
            show(watched.next(time.monotonic()))
            time.sleep(every_s)
    return 0


class Watched:
    """A server seen over time: what it said last, and since when it is away or back."""

    def __init__(self, ask: Callable[[], StatusReport]) -> None:
        self._ask = ask
        self._last: StatusReport | None = None
        self._away_since_s: float | None = None
        self._back_since_s: float | None = None
        self._news = ""

    def next(self, now_s: float) -> RenderableType:
        """The page of this moment; the last one, under a sentence, if the server is away."""
        try:
            report = self._ask()
        except Failure as fault:
            return self._away(fault, now_s)
        before, self._last = self._last, report
        if self._away_since_s is not None:
            self._says(f"back after {duration(now_s - self._away_since_s)}", now_s)
            self._away_since_s = None
        elif before is not None and before.epoch != report.epoch:
            self._says("the engine was restarted", now_s)
        rates = None if before is None else Rates.between(before, report)
        return self._under_news(page(report, rates), now_s)

    def _away(self, fault: Failure, now_s: float) -> RenderableType:
        if self._away_since_s is None:
            self._away_since_s = now_s
        away = Text(f"away for {duration(now_s - self._away_since_s)}: {fault}\n", "yellow")
        return away if self._last is None else Group(away, page(self._last))

    def _says(self, news: str, now_s: float) -> None:
        self._news, self._back_since_s = news, now_s

    def _under_news(self, shown: RenderableType, now_s: float) -> RenderableType:
        if self._back_since_s is None or now_s - self._back_since_s > NEWS_S:
            return shown
        ago = duration(now_s - self._back_since_s)
        return Group(Text(f"{self._news}, {ago} ago\n", "green"), shown)


@contextlib.contextmanager
def _shown(target: Console) -> Iterator[Callable[[RenderableType], object]]:
    """Where pages go: one over the other on a terminal, one after the other into a pipe."""
    if not target.is_terminal:
        yield lambda shown: target.print(shown, Text())
        return
    with Live(console=target, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda shown: live.update(shown, refresh=True)
