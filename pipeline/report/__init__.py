"""The report: one HTML file, readable without a network, that shows what a job made."""

from pipeline.report.build import ReportInputs, write_report

__all__ = ["ReportInputs", "write_report"]
