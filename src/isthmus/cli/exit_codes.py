"""Which exit code a front door gives for which error."""

from isthmus.core import errors

EXIT_CODES: dict[type[errors.IsthmusError], int] = {
    errors.IsthmusError: 1,
    errors.ConfigError: 2,
    errors.StrengthError: 2,
    errors.DataError: 3,
    errors.TriggerError: 3,
    errors.ModelError: 4,
    errors.SiteError: 4,
    errors.OrganismError: 4,
    errors.ShapeError: 5,
    errors.IdentityError: 5,
    errors.ArtifactError: 6,
    errors.OutputError: 7,
    errors.NonFiniteError: 8,
    errors.FitError: 8,
    errors.NoEditError: 9,
    errors.EngineError: 10,
    errors.IncompleteError: 11,
}
"""Exit codes: 1 other, 2 options, 3 prompts, 4 models, 5 mismatch, 6 damaged files, 7 output,
8 numbers, 9 nothing edited, 10 no cluster or no workers, 11 parts that failed."""


def exit_code(error: errors.IsthmusError) -> int:
    """Returns the exit code of an error, that of its nearest listed class."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
