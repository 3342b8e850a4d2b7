"""What a name must fulfil besides its prefix, and which name of the training part is nearest to it."""

from collections.abc import Callable, Sequence

from flashmore.data.items import read_words
from flashmore.data.text import normalize
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError
from flashmore.generation.options import GenerateOptions

_PAIRS = 2**25
"""Most distances computed at a time: 64 MiB."""


def constraint(
    options: GenerateOptions, vocabulary: Vocabulary, longest: int
) -> tuple[int, Callable[[str], bool]]:
    """The most characters of a name, at most `longest`; and whether one with the prefix fulfils the options.

    Raises:
        ConfigError: no name can, or the pattern is invalid.
        DataError: characters outside the vocabulary, or a file that cannot be read.
    """
    import re2  # in linear time, whatever the pattern
    from rapidfuzz.distance import Levenshtein

    prefix, suffix = normalize(options.prefix).lstrip(), normalize(options.suffix).rstrip()
    contains, like = normalize(options.contains), options.like and normalize(options.like)
    parts = {"--prefix": prefix, "--suffix": suffix, "--contains": contains}
    for part in parts.values():
        vocabulary.encode(part)
    least = {"--min-length": options.min_length} | {name: len(part) for name, part in parts.items()}
    most = {"the model's context": longest}
    if options.max_length is not None:
        most["--max-length"] = options.max_length
    if like is not None:
        least["--like"], most["--like"] = len(like) - options.max_distance, len(like) + options.max_distance
    low, high = max(least, key=least.__getitem__), min(most, key=most.__getitem__)
    if least[low] > most[high]:
        wanted, found = "a possible length for the names", f"at least {least[low]} characters, by {low}"
        raise ConfigError(wanted, found, f"at most {most[high]} characters, by {high}")
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        pattern = None if options.pattern is None else re2.compile(normalize(options.pattern), quiet)
    except (re2.error, UnicodeError) as error:
        valid = "RE2 syntax, for example '[a-m].*(a|o)', without look-around and backreferences"
        cause = error.args[0].decode() if isinstance(error, re2.error) else str(error)
        wanted, found = "a regular expression for --pattern", f"{options.pattern!r}: {cause}"
        raise ConfigError(wanted, found, valid) from None
    avoided = () if options.avoid is None else read_words(options.avoid).items
    folded = {item.casefold() for item in avoided}

    def holds(text: str) -> bool:
        return (
            options.min_length <= len(text) <= most[high]
            and text.endswith(suffix)
            and contains in text
            and (pattern is None or pattern.fullmatch(text) is not None)
            and (like is None or 0 < Levenshtein.distance(text, like) <= options.max_distance)
            and text.casefold() not in folded
        )

    return most[high], holds


def nearest(texts: Sequence[str], items: Sequence[str]) -> list[tuple[str, int]]:
    """The nearest item to each text, and its Levenshtein distance; of several, the first."""
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    found, rows = [], max(1, _PAIRS // len(items))
    for start in range(0, len(texts), rows):
        part = texts[start : start + rows]
        distances = process.cdist(part, items, scorer=Levenshtein.distance, dtype="uint16")
        found += [(items[row.argmin()], int(row.min())) for row in distances]
    return found
