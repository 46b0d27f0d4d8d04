"""The Sphinx extension: pages that are written before the build, and tables and pictures in it."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.extension.evidence import of_method, of_rule
from docs.extension.reference import pages
from docs.pictures import PICTURES
from docs.pictures.style import DARK, LIGHT
from recall_lightning.methods import FILES
from recall_lightning.methods.table import METHODS

_MADE = Path("pictures", "made")


class Evidence(SphinxDirective):
    """The rows of the measurements that are of a rule or a method."""

    required_arguments = 1
    reads: ClassVar[Callable[[str], list[str]]]

    def run(self) -> list[nodes.Node]:
        """Return the tables, or a sentence where nothing was measured."""
        lines = type(self).reads(self.arguments[0])
        none = ["No row of the tables of measurements is of it."]
        return self.parse_text_to_nodes("\n".join(lines or none))


class EvidenceOfMethod(Evidence):
    """Of a method."""

    reads = staticmethod(of_method)


class EvidenceOfRule(Evidence):
    """Of a rule."""

    reads = staticmethod(of_rule)


class Methods(SphinxDirective):
    """The table of methods, from their own records."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = ["| method | what it does | reads old data |", "|---|---|---|"]
        for name, method in METHODS.items():
            old = "yes" if method.needs_old_data else "no"
            lines.append(f"| [{name}]({FILES[name]}.md) | {method.summary} | {old} |")
        return self.parse_text_to_nodes("\n".join(lines))


class Picture(SphinxDirective):
    """A picture of ``docs/pictures``, in light and dark; what it shows is the content."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Callable[[str], str]]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return both, of which the theme shows the one that fits."""
        name, figure, images = self.arguments[0], nodes.figure(), nodes.container()
        for colours in (LIGHT, DARK):
            uri = f"/{_MADE.as_posix()}/{name}-{colours.name}.svg"
            image = nodes.image(uri=uri, alt=self.options["alt"])
            image["classes"] += [f"only-{colours.name}", "dark-light"]
            images += image
        figure += images  # in a box, for the theme hides a caption beside what it hides
        if self.content:
            caption = nodes.caption()
            caption += self.parse_inline(" ".join(self.content))[0]
            figure += caption
        return [figure]


def write_pages(app: Sphinx) -> None:
    """Write what is made of the source; a file that would stay the same is left alone."""
    folder = Path(app.srcdir)
    for path, text in pages().items():
        _write(folder / path, text.encode())
    for name, draw in PICTURES.items():
        for colours in (LIGHT, DARK):
            _write(folder / _MADE / f"{name}-{colours.name}.svg", colours.svg(draw))


def put_dashes(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put a dash between an argument's name and what it is, where Sphinx writes two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it."""
    app.add_directive("evidence-of-method", EvidenceOfMethod)
    app.add_directive("evidence-of-rule", EvidenceOfRule)
    app.add_directive("methods", Methods)
    app.add_directive("picture", Picture)
    app.connect("builder-inited", write_pages)
    app.connect("doctree-resolved", put_dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)
