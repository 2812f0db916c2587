"""What a trial expects."""


class TrialFailed(Exception):  # noqa: N818
    """An expectation of a trial did not hold."""


def require(holds: object, problem: str) -> None:
    """Raises TrialFailed unless the condition holds."""
    if not holds:
        raise TrialFailed(problem)
