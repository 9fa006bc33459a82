"""What docstrings have that Markdown, or a table of parameters, would garble."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # up to the next empty line
TYPE = re.compile(r"^( +\w+ )\(`([^`\n]+)`(?:, \*(optional)\*)?", re.MULTILINE)  # as in TRL: name (`str`, *optional*)


class Docstrings(griffe.Extension):
    """Puts fences around examples, and takes the markup off types."""

    def on_object(self, *, obj, **keywords):
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
            obj.docstring.value = TYPE.sub(lambda m: f"{m[1]}({m[2]}{', optional' if m[3] else ''}", text)
