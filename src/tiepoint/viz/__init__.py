"""Pictures of results: matches side by side, pruning, scores, and a page to explore matches in a browser.

Drawing needs matplotlib (``pip install 'tiepoint[viz]'``); the page needs nothing.
"""

from .page import write_page
from .pictures import plot_matches, plot_pruning, plot_scores

__all__ = ["plot_matches", "plot_pruning", "plot_scores", "write_page"]
