"""The page: one file that loads nothing, with the values of runner.report.collect inside."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

WEB = Path(__file__).parent / "web"
SCRIPTS = ("base", "plot", "overview", "runs", "curves", "pareto", "tables", "difference", "start")  # in this order


def page(values: dict[str, Any]) -> str:
    """The HTML text. Its content policy lets only the page's own script and style work, and nothing be loaded."""
    style = (WEB / "page.css").read_text(encoding="utf-8")
    code = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{code}\n}})();'
    parts = {
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
        "form-action 'none'",
        "data": embedded(values),
    }
    template = (WEB / "page.html").read_text(encoding="utf-8")
    # one pass: what is put in is not searched again
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin a comment.

    Numbers that are not finite become the texts "nan", "inf" and "-inf".
    """
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and surrogates escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
