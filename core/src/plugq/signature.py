"""The parameters of a function: which calls fit, and which values its annotations allow."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal, Union

import msgspec

from plugq.errors import InvalidJob

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PLAIN = (int, float, str, bool, bytes, type(None))


class Signature:
    """The parameters of a function: which calls fit, and which values its annotations allow.

    Annotations made of JSON's types, their containers, unions and literals are checked; whatever
    else is annotated is left to the function.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._signature = inspect.signature(function)
        try:
            hints = typing.get_type_hints(function)
        except Exception:  # noqa: BLE001 - annotations may be for a type checker only
            hints = {}
        self._types: dict[str, Any] = {}
        positional = []
        for parameter in self._signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if _checkable(hint):
                self._types[parameter.name] = hint
            if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
                positional.append(parameter)
        self._positional = [self._types.get(parameter.name, Any) for parameter in positional]
        self._required = sum(parameter.default is parameter.empty for parameter in positional)
        #: A call with positional arguments alone needs no more than a look at their number.
        self._simple = len(positional) == len(self._signature.parameters)
        returned = hints.get("return", Any)
        self._result = returned if _checkable(returned) else Any

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that do not fit.

        Raises:
            InvalidJob: the message names the task and what does not fit.
        """
        self._fit(args, kwargs)

    def bind(self, arguments: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return decoded arguments, converted as the annotations have them.

        Raises:
            InvalidJob: the message names the task and what does not fit.
        """
        try:
            args, kwargs = arguments
        except (TypeError, ValueError):
            raise InvalidJob(f"{self._name}: the payload holds no arguments") from None
        if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            raise InvalidJob(f"{self._name}: the payload holds no arguments")
        return self._fit(tuple(args), kwargs)

    def result(self, value: Any) -> Any:
        """Return a decoded result as the return annotation has it; as it is where that fails."""
        if self._result is Any:
            return value
        try:
            return msgspec.convert(value, self._result)
        except (msgspec.ValidationError, TypeError):
            return value

    def _fit(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if self._simple and not kwargs:
            if not self._required <= len(args) <= len(self._positional):
                self._refuse(args, kwargs)
            return [
                value if hint is Any or type(value) is hint else self._convert(index, value, hint)
                for index, (value, hint) in enumerate(zip(args, self._positional, strict=False))
            ], kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            self._refuse(args, kwargs)
        for name, value in bound.arguments.items():
            hint = self._types.get(name, Any)
            kind = self._signature.parameters[name].kind
            if hint is Any:
                continue
            if kind is inspect.Parameter.VAR_POSITIONAL:
                converted: Any = tuple(self._convert(name, one, hint) for one in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                converted = {key: self._convert(key, one, hint) for key, one in value.items()}
            else:
                converted = self._convert(name, value, hint)
            bound.arguments[name] = converted
        return bound.args, bound.kwargs

    def _refuse(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> typing.NoReturn:
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            message = f"{self._name}{self._signature}: {error}"
            raise InvalidJob(message) from error
        message = f"{self._name}{self._signature}: the arguments do not fit"
        raise InvalidJob(message)

    def _convert(self, place: int | str, value: Any, hint: Any) -> Any:
        try:
            return msgspec.convert(value, hint)
        except (msgspec.ValidationError, TypeError) as error:
            name = list(self._signature.parameters)[place] if isinstance(place, int) else place
            message = f"{self._name}: argument {name!r}: {error}"
            raise InvalidJob(message) from error


def _checkable(hint: Any) -> bool:
    """Return whether values of that annotation are made of JSON's types only."""
    if hint in _PLAIN or hint is None:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return all(isinstance(arg, str | int) for arg in args)
    if origin in {Union, types.UnionType}:
        return all(map(_checkable, args))
    if origin in {list, dict, tuple}:
        return all(arg in {Ellipsis, Any} or _checkable(arg) for arg in args)
    return hint in {list, dict, tuple}


__all__ = ["Signature"]
