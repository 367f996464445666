"""The one exception for mistakes that a user can put right."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, an option or a recipe.

    Its message is one sentence that says what was expected, what came, where, and what to do. The command
    line prints that sentence and exits with status 2.
    """
