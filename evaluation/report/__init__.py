"""Reports: leaderboards from results, as one HTML page, JSON, CSV, Markdown and on the terminal."""

from evaluation.report.leaderboard import Leaderboard, leaderboards
from evaluation.report.terminal import print_leaderboard

__all__ = ["Leaderboard", "leaderboards", "print_leaderboard"]
