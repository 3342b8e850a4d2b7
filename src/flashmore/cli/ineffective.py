"""Options of a recipe that would change nothing beside the others: they are refused, not ignored."""

from collections.abc import Callable, Sequence

from flashmore.cli.parse import options_in
from flashmore.errors import RecipeError
from flashmore.specs import model_spec, models
from flashmore.training.recipe import Recipe


def _acts(option: str) -> tuple[Callable[[Recipe], bool], str]:
    able = [name for name, spec in models().items() if option in spec.options]
    return (lambda recipe: recipe.model in able), f"--model {' or '.join(able)}"


def _may_use(recipe: Recipe, name: str) -> bool:
    return bool({"all", name} & set(recipe.speedups))


def _muon(recipe: Recipe) -> bool:
    by_speedups = recipe.optimizer == "auto" and _may_use(recipe, "muon")
    return model_spec(recipe.model).muon and (recipe.optimizer == "muon" or by_speedups)


def _cosine(recipe: Recipe) -> bool:
    by_speedups = "auto" in recipe.speedups or _may_use(recipe, "schedule")
    return recipe.lr_schedule == "cosine" or (recipe.lr_schedule == "auto" and by_speedups)


RULES: dict[str, tuple[Callable[[Recipe], bool], str]] = {
    "--attention": (lambda r: r.attention == "auto" or _acts("attention")[0](r), _acts("attention")[1]),
    "--attention-dropout": _acts("attention_dropout"),
    "--n-head": _acts("n_head"),
    "--n-layer": _acts("n_layer"),
    "--n-embd": _acts("n_embd"),
    "--dropout": _acts("dropout"),
    "--muon-learning-rate": (_muon, "--model transformer with --optimizer muon"),
    "--min-lr-ratio": (_cosine, "--lr-schedule cosine"),
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
    if option == "--min-lr-ratio":
        return f"--lr-schedule {recipe.lr_schedule} and --speedups {' '.join(recipe.speedups)}"
    if option == "--muon-learning-rate" and model_spec(recipe.model).muon:
        return f"--optimizer {recipe.optimizer} and --speedups {' '.join(recipe.speedups)}"
    return f"--model {recipe.model}"
