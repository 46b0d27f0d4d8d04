"""How the site is built: ``make docs``, which reads nothing from the network."""

import sys
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))  # figure_scraper, by its name
EXAMPLES = ROOT / "examples"
SECTIONS = ["start", "data_and_heads", "rules_and_methods", "language_models", "operating"]
HAS_EXAMPLES = any(EXAMPLES.glob("**/plot_*.py"))

project = "recall_lightning"
author = "the authors of recall_lightning"
copyright = "the authors of recall_lightning; Apache-2.0"
version = release = version_of("recall-lightning")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docs.extension.directives",
]
exclude_patterns = ["_build", "extension", "pictures"]
language = "en_GB"
smartquotes = False  # messages and options are shown as they are

# Links: every one inside the site is checked, and every reference to a name of the package.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!recall_lightning).*")]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = "recall_lightning"
html_static_path = ["_static"]
html_css_files = ["site.css", "reference.css", "gallery.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "recall_lightning"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "support": []}

# The gallery: every examples/**/plot_*.py is run, and becomes a page, under its folder's header.
# ``-D plot_gallery=0`` shows them without running them.
if HAS_EXAMPLES:
    import_module("lightning.pytorch")  # its log then is on the terminal, in no example's output
    extensions.append("sphinx_gallery.gen_gallery")
else:  # the contents name the gallery all the same
    suppress_warnings = ["toc.not_readable"]
sphinx_gallery_conf = {
    "examples_dirs": str(EXAMPLES),
    "gallery_dirs": "examples",
    "filename_pattern": r"[\\/]plot_",
    "ignore_pattern": r"__init__\.py|conftest\.py",
    "subsection_order": [f"../examples/{section}" for section in SECTIONS],
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", "figure_scraper.scrape"),
    "ignore_repr_types": r"matplotlib",
    "reference_url": {"recall_lightning": None},  # names in the code lead to the reference
    "nested_sections": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
}


def show_math(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what no extension does."""
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
    if not HAS_EXAMPLES:  # so that -D plot_gallery=0 is known all the same
        app.add_config_value("plot_gallery", True, "html")


html_math_renderer = "mathml"
