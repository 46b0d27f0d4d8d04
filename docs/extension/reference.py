"""The pages of the reference that are written from the source when the site is built."""

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from docs.extension.markup import escaped, heading
from docs.extension.messages import Message, errors, warnings
from docs.extension.options import Option, groups_of, parser_of
from docs.extension.sources import Source, sources
from recall_lightning.cli.main import _COMMANDS

_FILTER = """.. raw:: html

   <p><label>Show what holds
   <input type="search" id="message-filter" placeholder="words of the message"></label></p>
   <script>
   document.getElementById("message-filter").addEventListener("input", (event) => {
     const words = event.target.value.toLowerCase().split(/\\s+/);
     for (const item of document.querySelectorAll("ul.messages > li")) {
       const text = item.textContent.toLowerCase();
       item.hidden = !words.every((word) => text.includes(word));
     }
   });
   </script>
"""


def command_page(command: str) -> Iterator[str]:
    """Yield the lines of a command's page."""
    parser = parser_of(command)
    yield from heading(f"recall-lightning {command}", "=")
    summary = escaped(_COMMANDS[command].summary)
    yield from [f"{summary[0].upper()}{summary[1:]}.", ""]
    if command in ("fit", "validate"):
        yield from [
            "As every option of a LightningCLI, these may stand in a YAML file, which is given as "
            "``-c``. What takes a class, such as ``--recall.rule``, has a help of its own: "
            f"``recall-lightning {command} --recall.rule.help Rbf``.",
            "",
        ]
    else:
        yield from [escaped(parser.description or ""), ""]
    yield from [f".. program:: recall-lightning {command}", ""]
    for group in groups_of(parser):
        yield from heading(escaped(group.title), "-")
        for option in group.options:
            given = ", ".join(f"{name} {option.value}".strip() for name in option.names)
            yield from [f".. option:: {given}", "", f"   {_sentences(option)}", ""]
    if command not in ("fit", "validate") and parser.epilog:
        yield from ["::", "", *(f"   {line}" for line in parser.epilog.strip().splitlines()), ""]


def _sentences(option: Option) -> str:
    ends = not option.text or option.text.endswith((".", ")"))
    text = option.text if ends else f"{option.text}."
    return f"{text} Default: ``{option.default}``." if option.default else text


def errors_page() -> Iterator[str]:
    """Yield the lines of the page of errors."""
    yield from heading("Errors", "=")
    yield (
        "Every error that the package raises in words of its own, as its source has it, by the "
        "part that raises it: what is wrong, and what to do where that does not follow from it. "
        "What is told within another message has that one's advice here. ‹…› stands for what the "
        "message puts in. What a callback or the command line was given is named before the "
        "message, as in ``RecallCallback: …``; such errors are Lightning's "
        "``MisconfigurationException``, all others a ``ValueError`` unless another name stands "
        "beside them. Commands print them as one line and end with exit code 2."
    )
    yield from ["", _FILTER]
    yield from _by_file(errors, {"ValueError", "MisconfigurationException"})


def warnings_page() -> Iterator[str]:
    """Yield the lines of the page of warnings."""
    yield from heading("Warnings", "=")
    yield (
        "Every warning of the package, by the part that gives it. ‹…› stands for what the message "
        "puts in. A run goes on after a warning; what follows from it stands in the message."
    )
    yield from ["", _FILTER]
    yield from _by_file(warnings, {"warning"})


def pages() -> dict[Path, str]:
    """Return all pages by their file, from the folder of the documentation on."""
    made = {
        Path("reference/errors.rst"): errors_page(),
        Path("reference/warnings.rst"): warnings_page(),
    }
    made |= {Path(f"reference/commands/{name}.rst"): command_page(name) for name in _COMMANDS}
    return {path: "\n".join(lines) + "\n" for path, lines in made.items()}


def _by_file(read: Callable[[Source], list[Message]], usual: set[str]) -> Iterator[str]:
    found = [(source, read(source)) for source in sorted(sources(), key=lambda each: each.room)]
    for room, of_room in groupby((each for each in found if each[1]), lambda each: each[0].room):
        yield from heading(room or "the package itself", "-")
        for source, messages in of_room:
            yield from [f".. rubric:: {escaped(source.summary)}", "", f"``{source.path}``", ""]
            yield from [".. rst-class:: messages", ""]
            for message in messages:
                yield from [*_in_words(message, usual), ""]


def _in_words(message: Message, usual: set[str]) -> Iterator[str]:
    kind = "" if message.kind in usual else f"``{message.kind}``: "
    yield f"* {kind}**{escaped(message.wrong.strip())}**"
    if message.advice:
        starts_with_word = re.match(r"[a-z]+[ ,;]", message.advice)
        first = message.advice[0].upper() if starts_with_word else message.advice[0]
        yield from ["", f"  {escaped(first + message.advice[1:])}"]
