"""Where an experiment's trials are: a live table on a terminal, a line an epoch otherwise."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import ray.tune
import rich.live
from rich.table import Table
from rich.text import Text

from pneumobatch.progress import console, say
from pneumobatch.training.grid import Trial

SHOWN = 20
"""Trials on the live table: those that run, and the last that ended."""


class Live(ray.tune.Callback):
    """Tune's callback that shows the trials; a context in which the table stands."""

    def __init__(self, trials: Sequence[Trial], came: Callable[[], None]) -> None:
        """`came` is called for every epoch of a trial."""
        self.came = came
        self.trials = {trial.key: trial for trial in trials}
        self.states: dict[str, tuple[str, dict[str, Any]]] = {}
        self.table = rich.live.Live(console=console, get_renderable=self._table, auto_refresh=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"table": None, "came": None}  # Tune keeps a copy of its callbacks; these stay here

    def __enter__(self) -> Self:
        if console.is_terminal:
            self.table.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if console.is_terminal:
            self.table.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial begins, or goes on after its process died."""
        self._move(trial, "runs", {})

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial has finished an epoch."""
        self.came()
        self._move(trial, "runs", result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has reached its end, or was stopped."""
        self._move(trial, "ended", self.states.get(trial.config["key"], ("", {}))[1])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has failed for good."""
        self._move(trial, "failed", {})

    def ended(self, key: str) -> bool:
        """Whether a trial reached its end or was stopped by the scheduler, and was not cut off with the experiment."""
        return self.states.get(key, ("", {}))[0] == "ended"

    def _move(self, trial: Any, state: str, figures: dict[str, Any]) -> None:
        key = trial.config["key"]
        self.states.pop(key, None)  # the last that moved stands last
        self.states[key] = state, figures
        if console.is_terminal:
            self.table.refresh()
        elif figures or state == "failed":
            one = self.trials[key]
            say(f"{one.row} ({one.protocol}, seed {one.seed}): {self._epochs(key)}{_told(figures)}, {self._counts()}")

    def _epochs(self, key: str) -> str:
        state, figures = self.states[key]
        if not figures:
            return state
        return f"{state}, {int(figures['epoch'])}/{self.trials[key].job.training.epochs} epochs"

    def _counts(self) -> str:
        ended = sum(state != "runs" for state, _ in self.states.values())
        return f"{ended}/{len(self.trials)} trials"

    def _table(self) -> Table:
        table = Table("row", "protocol", "seed", "", caption=self._counts(), box=None, pad_edge=False)
        for name in ("loss", "AUROC", "images/s"):
            table.add_column(name, justify="right")
        for key in [*self.states][-SHOWN:]:
            trial, figures = self.trials[key], self.states[key][1]
            numbers = ("train_loss", "{:.3f}"), ("auroc", "{:.3f}"), ("images_per_second", "{:.0f}")
            cells = [shape.format(figures[name]) for name, shape in numbers] if figures else []
            table.add_row(Text(trial.row), trial.protocol, str(trial.seed), self._epochs(key), *cells)
        return table


def _told(figures: dict[str, Any]) -> str:
    if not figures:
        return ""
    return (
        f", loss {figures['train_loss']:.4f}, validation AUROC {figures['auroc']:.4f}, "
        f"sensitivity {figures['sensitivity']:.3f}, specificity {figures['specificity']:.3f}, "
        f"{figures['images_per_second']:.0f} images/s"
    )
