"""The report: one HTML file, readable without a network, that shows what a job made."""

from pipeline.report.build import ReportInputs, report_of_runs, write_report

__all__ = ["ReportInputs", "report_of_runs", "write_report"]
