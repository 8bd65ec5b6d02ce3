"""The page that shows a run, or several: one HTML file, nothing from outside.

May import: worlds, watching and below.
Begin with: page.py puts it together; templates/ hold its HTML.
"""

from pipeline.report.numbers import number
from pipeline.report.page import write_comparison, write_report
from pipeline.report.samples import SAMPLES

__all__ = ["SAMPLES", "number", "write_comparison", "write_report"]
