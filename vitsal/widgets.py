"""Learning curves that move while a student is trained."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from vitsal.plotting import plot_learning_curves


class LiveCurve:
    """Learning curves that are drawn anew after every epoch; the last drawing stays in the notebook.

    Example:
        >>> curve = LiveCurve()
        >>> distill(student, maps, output, recipe, on_epoch=curve.of("convnet"))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.histories: dict[str, pd.DataFrame] = {}
        self.handle: DisplayHandle | None = None

    def of(self, name: str) -> Callable[[pd.DataFrame], None]:
        """What to call with one student's history after each epoch."""

        def update(history: pd.DataFrame) -> None:
            self.histories[name] = history
            figure = self.draw()
            if self.handle is None:
                self.handle = display(figure, display_id=True)
            else:
                self.handle.update(figure)
            plt.close(figure)

        return update

    def draw(self) -> Figure:
        """The curves so far."""
        figure, axis = plt.subplots()
        plot_learning_curves(axis, self.histories)
        return figure
