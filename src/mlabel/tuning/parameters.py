"""What a search may vary: values to choose from, and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mlabel._checks import resolve

Value = str | int | float | bool | None
_MOST_POINTS = 10_000  # of one parameter of a grid


@dataclass(frozen=True)
class Choice:
    """One of some values, which have no order.

    Args:
        values: Texts, numbers, True, False or None; each once.

    Raises:
        ValueError: no value, or one twice.
        TypeError: a value of another type.

    Example:
        >>> Choice(("adamw", "sgd")).points()
        ('adamw', 'sgd')
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        for value in self.values:
            if not isinstance(value, str | int | float | bool | None):
                raise TypeError(f"values to choose from must be texts, numbers, true or false; got {value!r}")
        if not self.values or len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"values to choose from must be one or more, each once; got {list(self.values)}")

    def points(self) -> tuple[Value, ...]:
        """Return the values of a grid."""
        return self.values

    def suggest(self, trial: Any, name: str) -> Value:
        """Return the value that Optuna's `trial` has, or gets, by `name`."""
        value: Value = trial.suggest_categorical(name, self.values)
        return value

    def to_json(self) -> list[Value]:
        """Return what `parse_parameters` reads."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both within; whole ones where both are whole.

    Args:
        low: The least.
        high: The greatest.
        log: As many are tried between 0.001 and 0.01 as between 0.01 and 0.1.
        step: Only `low` and so many steps more; None: all between.

    Raises:
        ValueError: an empty range, `log` with a step or from 0 or below, or a step that does not lead to `high`.
        TypeError: an end that is no number.

    Example:
        >>> Range(0.0, 0.5, step=0.25).points(), Range(8, 64, log=True).whole
        ((0.0, 0.25, 0.5), True)
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        for value in (self.low, self.high, *([] if self.step is None else [self.step])):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"low, high and step of a range must be numbers; got {value!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, both finite; got {self.low!r} and {self.high!r}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"a range with log is from above 0 and has no step; got {self}")
        if self.step is not None:
            self._check_step(self.step)

    def _check_step(self, step: float) -> None:
        if not step > 0 or (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(step)):
            raise ValueError(f"high must be low and a whole number of steps; got {self}")
        if self.whole and not isinstance(step, int):
            raise ValueError(f"the step of whole numbers must be whole; got {self}")

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def points(self) -> tuple[Value, ...]:
        """Return the values of a grid.

        Raises:
            ValueError: there is no step to go by, or there are more than 10,000.
        """
        step = 1 if self.step is None and self.whole and not self.log else self.step
        if step is None:
            raise ValueError(f"a grid has no points in a range without a step; give a step, or a list; got {self}")
        count = int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(step))) + 1
        if count > _MOST_POINTS:
            raise ValueError(f"a grid of {count:,} points of one setting is too fine; got {self}")
        places = (Decimal(str(self.low)) + place * Decimal(str(step)) for place in range(count))
        return tuple(int(each) if self.whole else float(each) for each in places)

    def suggest(self, trial: Any, name: str) -> Value:
        """Return the value that Optuna's `trial` has, or gets, by `name`."""
        if self.whole:
            return int(trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log))
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def to_json(self) -> dict[str, Any]:
        """Return what `parse_parameters` reads."""
        step = {} if self.step is None else {"step": self.step}
        return {"low": self.low, "high": self.high, **({"log": True} if self.log else {}), **step}


Parameter = Choice | Range


def parse_parameters(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return name to `Choice` of a list, and to `Range` of a table with `low` and `high`, as TOML and JSON have them.

    Args:
        given: Name to a list, a table, or what is returned.

    Raises:
        ValueError, TypeError: there are none, or one is neither, or is wrong; the message names it.

    Example:
        >>> parse_parameters({"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": [0.3, 0.5]})["dropout"]
        Choice(values=(0.3, 0.5))
    """
    if not given:
        raise ValueError("nothing varies: a search wants one setting or more, each with values or a range")
    return {name: _parse(name, value) for name, value in given.items()}


def _parse(name: str, value: Any) -> Parameter:
    try:
        if isinstance(value, Choice | Range):
            return value
        if isinstance(value, Mapping):
            for key in value:
                resolve(key, dict.fromkeys(("low", "high", "log", "step")), "part of a range")
            if not {"low", "high"} <= set(value):
                raise ValueError("a range wants low and high")
            return Range(**value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return Choice(tuple(value))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from None
    raise TypeError(f"{name}: a list of values, or a table with low and high, was wanted; got {value!r}")
