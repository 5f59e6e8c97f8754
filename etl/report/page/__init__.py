"""The report as one page: `contents` gathers what it shows, `write_page` puts it into one file."""

from etl.report.page.write import write_page

__all__ = ["write_page"]
