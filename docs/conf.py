"""Configuration of Sphinx: `make docs` builds these pages into docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for generated.py and defects.py beside this file
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # for mask_source.py

from loader.format import VERSION

project = "dicom-etl"
author = "the dicom-etl contributors"
release = version = VERSION
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["_build"]
nitpicky = True  # a reference to what does not exist fails the build
nitpick_ignore_regex = [("py:class", ".*")]  # but types in docstrings are words of the field

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings are numpydoc; single backticks in them are code.
default_role = "literal"
napoleon_google_docstring = False
napoleon_use_param = False  # types of parameters are words of the field, not references
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_mock_imports = ["torch"]  # large, and only its names are needed
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "dicom-etl"
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
