"""What the site needs beyond Markdown: the README as its first page, equations as MathML, docstrings in Markdown.

MathML is what browsers draw by themselves: no script is loaded, from here or from elsewhere.
"""

import re
import textwrap
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^\.\. math::(.*(?:\n(?:[ ]+.*)?)*)", re.MULTILINE)
ARGS = re.compile(r"(?<=^Args:\n)(?:(?: {4}.*)?\n)+", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod):`([^`]+)`")


def equation(latex: str) -> str:
    """A displayed equation in MathML, on a line of its own."""
    latex = " ".join(latex.split()).replace(r"\arg\max", r"\operatorname{argmax}")
    if r"\\" in latex and "cases" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return f"\n\n{convert(latex, display='block')}\n\n"


def one_by_one(args: str) -> str:
    """An Args section in which "a, b: text" has become "a: text" and "b: text", as griffe wants it."""
    items = [item.partition(":") for item in re.split(r"^(?= {4}\w)", args, flags=re.MULTILINE) if item]
    return "".join(f"    {name.strip()}{colon}{text}" for names, colon, text in items for name in names.split(", "))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README as the first page; links to files that are no pages become their text."""
    text = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    pages = {file.src_uri for file in files}

    def kept(link: re.Match) -> str:
        return link[0] if link[2].split("#")[0] in pages or "://" in link[2] else link[1]

    text = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", kept, text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Equations of a page."""
    return BLOCK.sub(lambda block: equation(block[1]), markdown)


class Docstrings(griffe.Extension):
    """Turns what the docstrings have of reStructuredText, equations and roles, into Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every object that it reads."""
        if obj.is_attribute and "property" not in obj.labels:
            obj.docstring = None  # that of its type
        if obj.docstring:
            text = DIRECTIVE.sub(lambda block: equation(textwrap.dedent(block[1])), obj.docstring.value)
            text = ARGS.sub(lambda args: one_by_one(args[0]), text + "\n")
            obj.docstring.value = ROLE.sub(r"`\1`", text.replace(" ::\n", "\n"))
