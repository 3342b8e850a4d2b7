"""Options of a recipe that would change nothing beside the others: they are refused, not ignored."""

from collections.abc import Callable, Sequence

from flashmore.cli.parse import options_in
from flashmore.errors import RecipeError
from flashmore.training.recipe import Recipe


def _attends(recipe: Recipe) -> bool:
    return recipe.model == "transformer"


def _may_use(recipe: Recipe, name: str) -> bool:
    return bool({"all", name} & set(recipe.speedups))


def _muon(recipe: Recipe) -> bool:
    by_speedups = recipe.optimizer == "auto" and _may_use(recipe, "muon")
    return recipe.model == "transformer" and (recipe.optimizer == "muon" or by_speedups)


def _cosine(recipe: Recipe) -> bool:
    by_speedups = "auto" in recipe.speedups or _may_use(recipe, "schedule")
    return recipe.schedule == "cosine" or (recipe.schedule == "auto" and by_speedups)


RULES: dict[str, tuple[Callable[[Recipe], bool], str]] = {
    "--attention": (lambda r: _attends(r) or r.attention == "auto", "--model transformer"),
    "--attention-dropout": (_attends, "--model transformer"),
    "--heads": (_attends, "--model transformer"),
    "--layers": (lambda r: r.model in ("transformer", "wavenet"), "--model transformer or wavenet"),
    "--channels": (lambda r: r.model != "bigram", "a model other than bigram"),
    "--dropout": (lambda r: r.model != "bigram", "a model other than bigram"),
    "--muon-lr": (_muon, "--model transformer with --optimizer muon"),
    "--lr-end": (_cosine, "--schedule cosine"),
    "--split-seed": (
        lambda r: r.mode == "items" and r.split != "makemore",
        "shares of items, such as 80/10/10",
    ),
    "--encoding": (lambda r: r.file is not None, "a text file"),
}
"""For each option, whether it acts, and what it would act with."""


def refuse_ineffective(recipe: Recipe, argv: Sequence[str], unused: Sequence[str] = ()) -> None:
    """Refuse options that were given, and change nothing of this recipe.

    Args:
        recipe: what the words came to.
        argv: the words.
        unused: options of a recipe that this command does not use at all.

    Raises:
        RecipeError: the first of them.
    """
    given = options_in(argv)
    for option in unused:
        if option in given:
            raise RecipeError("options that change what is measured", option, f"the same without {option}")
    for option, (acts, needed) in RULES.items():
        if option in given and not acts(recipe):
            found = f"it changes nothing with {_said(recipe, option)}"
            raise RecipeError(f"{option} with {needed}", found, f"{needed}, or no {option}")


def _said(recipe: Recipe, option: str) -> str:
    if option == "--encoding":
        return "the built-in names"
    if option == "--split-seed":
        return "--mode text" if recipe.mode == "text" else f"--split {recipe.split}"
    if option == "--lr-end":
        return f"--schedule {recipe.schedule} and --speedups {' '.join(recipe.speedups)}"
    if option == "--muon-lr" and recipe.model == "transformer":
        return f"--optimizer {recipe.optimizer} and --speedups {' '.join(recipe.speedups)}"
    return f"--model {recipe.model}"
