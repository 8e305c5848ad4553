"""What `themis doctor` looks at. Foreign code runs in child processes only."""

from themis_core.doctor.examination import Section, examine, worst

__all__ = ["Section", "examine", "worst"]
