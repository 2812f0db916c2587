"""What did not survive."""


class LostError(Exception):
    """What did not survive."""


def require(survived: object, problem: str) -> None:
    """Raises LostError unless the condition holds."""
    if not survived:
        raise LostError(problem)
