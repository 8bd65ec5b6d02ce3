"""Docstrings of this project for mkdocstrings: an extension of Griffe, which reads the code without running it.

A section (`Args:`, `Options:`, `Raises:`, ...) becomes a list, in whose items several names may stand before the
colon. A setting of a dataclass gets the text that its `--help` shows.
"""

import ast
import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes|Options|Raises|Returns):(.*)$")
ITEM = re.compile(r"^(\S.*?): +(.*)$")


class Docstrings(griffe.Extension):
    """What mkdocstrings calls for each object that Griffe has found."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of a class, function or module."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = with_lists(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Gives a setting its help text."""
        if attr.docstring is None and isinstance(attr.value, griffe.ExprCall) and (text := help_of(str(attr.value))):
            attr.docstring = griffe.Docstring(text, parent=attr)
            attr.value = default_of(str(attr.value))


def with_lists(docstring: str) -> str:
    """The docstring with its sections as Markdown lists."""
    lines, out, inside = docstring.splitlines(), [], False
    for line in lines:
        if section := SECTION.match(line):
            inside = not section[2].strip()
            out += ["", f"**{section[1]}:**{section[2]}", ""]
        elif not inside or not line.strip():
            out.append(line)
        elif not line.startswith("    "):
            inside = False
            out.append(line)
        elif line.startswith("     "):  # goes on with the item before
            out.append(f"  {line.strip()}")
        else:
            item = ITEM.match(line.strip())
            out.append(f"- {names(item[1])}: {item[2]}" if item else f"- {line.strip()}")
    return "\n".join(out)


def names(text: str) -> str:
    """`wanted ([]), unwanted` with each name as code; what is no list of names stays as it is."""
    parts = re.split(r", (?![^(]*\))", text)
    if not all(re.match(r"\*{0,2}[A-Za-z_][\w.]*( \(.*\))?$", part) for part in parts):
        return text
    return ", ".join(re.sub(r"^(\S+)", r"`\1`", part) for part in parts)


def call(source: str) -> ast.Call | None:
    """The call that a default is written as: `field(default=.., metadata={"help": ..})`, `setting(default, text)`."""
    tree = ast.parse(textwrap.dedent(source), mode="eval").body
    return tree if isinstance(tree, ast.Call) and ast.unparse(tree.func) in ("field", "setting") else None


def help_of(source: str) -> str:
    """The help text in such a call, or nothing."""
    if (found := call(source)) is None:
        return ""
    text = found.args[1] if len(found.args) > 1 else None
    for keyword in found.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            keys = [getattr(key, "value", None) for key in keyword.value.keys]
            text = keyword.value.values[keys.index("help")] if "help" in keys else text
    return text.value.replace("%%", "%") if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""


def default_of(source: str) -> str:
    """The default in such a call."""
    found = call(source)
    default = found.args[0] if found and found.args else None
    for keyword in found.keywords if found else ():
        if keyword.arg in ("default", "default_factory"):
            default = keyword.value
    return ast.unparse(default) if default is not None else "..."
