from __future__ import annotations

import pytest

from unidiff_core import Registry
from unidiff_core.foundation.registry import PluginError, UnknownNameError, name_of


class Shape:
    pass


class Round(Shape):
    registered_name = "round"

    def __init__(self, radius: float = 1.0) -> None:
        if radius <= 0:
            raise ValueError("the radius is positive")
        self.radius = radius


class Square(Shape):
    pass


def test_a_class_is_registered_under_its_name_or_the_one_that_it_says():
    registry = Registry("shapes")
    assert registry.add(Round) is Round and registry.add(Square) is Square
    assert registry.add(Square) is Square, "twice the same is once"
    assert (name_of(Round), name_of(Square)) == ("round", "Square")
    assert registry.find("round", Shape) is Round and set(registry.of_kind(Shape)) == {"round", "Square"}
    with pytest.raises(
        UnknownNameError, match=r"unknown shape 'Round'; did you mean round\? Registered: Square, round\."
    ):
        registry.find("Round", Shape)
    with pytest.raises(UnknownNameError, match=r"unknown round 'Square'; registered: round\."):
        registry.find("Square", Round)


def test_an_object_is_made_by_name_and_a_refusal_says_whose_it_is():
    registry = Registry("shapes")
    registry.add(Round)
    assert registry.make("round", radius=2.0).radius == registry.make("round", 2.0).radius == 2.0
    with pytest.raises(PluginError, match="round of shapes cannot be made from radius: the radius is positive"):
        registry.make("round", radius=0.0)


def test_a_merge_takes_all_or_nothing():
    ours, theirs = Registry("ours"), Registry("theirs")
    ours.add(Round)
    theirs.add(Square)
    theirs.add(type("Other", (), {"registered_name": "round"}))
    with pytest.raises(PluginError, match="round of theirs is already registered by ours; rename one"):
        ours.merge(theirs)
    assert set(ours.registrations) == {"round"}
    del theirs.registrations["round"]
    ours.merge(theirs)
    assert ours.registrations["Square"].distribution == "theirs"
