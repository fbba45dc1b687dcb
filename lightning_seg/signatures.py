"""Constructors that show every argument, also those that they pass on to a base class."""

from __future__ import annotations

from inspect import Parameter, Signature, signature
from typing import Any, ClassVar


class ExplicitSignature:
    """Gives each subclass a signature in which the arguments of its bases stand by their names.

    A constructor that ends in `**options` passes these on to its base. `inspect.signature`, `help`
    and editors would show `**options`; with this base they show the options themselves, which are
    documented once, where they are defined.

    Attributes:
        fixed_options: The arguments of a base that a subclass sets itself.

    Examples:
        >>> import inspect
        >>> class Base(ExplicitSignature):
        ...     def __init__(self, *, lr: float = 0.1) -> None: ...
        >>> class Method(Base):
        ...     def __init__(self, p: float = 2.0, **options: float) -> None: ...
        >>> list(inspect.signature(Method).parameters)
        ['p', 'lr']
    """

    fixed_options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = explicit_signature(cls)  # type: ignore[attr-defined]


def explicit_signature(kind: type) -> Signature:
    """Return the signature of a class, with its bases' arguments in place of `**options`.

    A required positional argument of a base is not among them: the subclass computes it.

    Args:
        kind: A class whose constructors pass `**options` on to the next one of its bases.
    """
    constructors = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each)]
    found: dict[str, Parameter] = {}
    for level, constructor in enumerate(constructors):
        _, *parameters = signature(constructor).parameters.values()  # without self
        for each in parameters:
            keyword = each.kind is Parameter.KEYWORD_ONLY or each.default is not Parameter.empty
            named = each.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
            if level == 0 and named:
                found[each.name] = each
            elif named and keyword and each.name not in kind.fixed_options:  # type: ignore[attr-defined]
                found.setdefault(each.name, each.replace(kind=Parameter.KEYWORD_ONLY))
        if all(each.kind is not Parameter.VAR_KEYWORD for each in parameters):
            break
    return Signature(sorted(found.values(), key=lambda each: each.kind))
