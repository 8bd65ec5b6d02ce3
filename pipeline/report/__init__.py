"""The page that shows a run, or several: page.py puts it together, templates/ hold its HTML."""

from pipeline.report.numbers import number
from pipeline.report.page import write_comparison, write_report
from pipeline.report.samples import SAMPLES

__all__ = ["SAMPLES", "number", "write_comparison", "write_report"]
