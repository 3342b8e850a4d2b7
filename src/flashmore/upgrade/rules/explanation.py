"""The page of a rule, for `flashmore rule`, for docs/rules and for reports that carry help."""

from importlib.resources import files

from flashmore.upgrade.rules.rule import Rule


def page(rule: Rule) -> str:
    """What a rule replaces, with an example, and how exact that is, as Markdown."""
    text = files("flashmore.upgrade.rules").joinpath("pages", f"{rule.code}.md").read_text(encoding="utf-8")
    head = f"# {rule.code} {rule.name}\n\n{rule.summary}\n\nPyTorch's documentation: <{rule.documentation}>\n"
    if not rule.needs:
        return f"{head}\n{text}"
    needs = [f"- `{what.rstrip('(=')}`: {first} or newer" for what, first in reversed(rule.needs)]
    versions = "\n".join(["## Versions of torch", "", "A rewrite may use:", "", *needs, ""])
    return f"{head}\n{text}\n{versions}"
