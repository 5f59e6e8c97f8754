"""The report as a page: `contents` gathers what it shows, `write` puts it into files."""

from etl.report.page.contents import Subject
from etl.report.page.write import write_page, write_pages

__all__ = ["Subject", "write_page", "write_pages"]
