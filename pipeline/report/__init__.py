"""The page that shows a run: page.py puts it together, templates/ hold its HTML."""

from pipeline.report.page import SAMPLES, number, write_report

__all__ = ["SAMPLES", "number", "write_report"]
