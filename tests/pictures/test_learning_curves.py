"""Learning curves in a notebook: drawn once, then updated in place."""

import matplotlib.pyplot as plt
import pandas as pd

from vitsal.pictures.charts import LiveCurve


def test_live_curve_shows_once_and_is_then_updated(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr("vitsal.pictures.charts.display", display)
    curve, open_before = LiveCurve(), plt.get_fignums()
    history = pd.DataFrame({"epoch": [1, 2], "kl": [0.5, 0.3], "loss": [0.6, 0.4]})
    curve.of("one")(history[:1])
    curve.of("one")(history)
    curve.of("two")(history[:1])
    lines = [figure.axes[0].get_lines()[:-2] for figure in shown]  # without those that the legend alone shows
    points = [[len(line.get_xdata()) for line in drawn] for drawn in lines]
    assert points == [[1, 1], [2, 2], [2, 2, 1, 1]]
    assert plt.get_fignums() == open_before
