"""Comparisons that every claim rests on."""

from __future__ import annotations

import pytest
import torch

from dojo.close import Mismatch, assert_close, assert_equal, assert_true


class EqualToAll:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@pytest.mark.parametrize("want", [5, "text", b"x", [1, 2], None, {1: 2}])
def test_what_calls_itself_equal_is_not(want):
    with pytest.raises(Mismatch, match="EqualToAll"):
        assert_equal([EqualToAll()] * 2 if isinstance(want, list) else EqualToAll(), want)


@pytest.mark.parametrize(
    ("got", "want"), [(5, 5), ((1, 2), [1, 2]), (["a"], ("a",)), (None, None), (b"", b"")]
)
def test_equal_values_are_equal(got, want):
    assert_equal(got, want)


@pytest.mark.parametrize(
    ("got", "want"), [(True, 1), ([1], [1, 2]), ("a", b"a"), ([1, 3], [1, 2]), (None, 0)]
)
def test_others_are_not(got, want):
    with pytest.raises(Mismatch):
        assert_equal(got, want)


def test_nan_is_called_by_its_name():
    with pytest.raises(Mismatch, match="the result is nan in 1 of 2 places"):
        assert_close(
            torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]).double(), dtype=torch.float32
        )


class Liar(torch.Tensor):
    """Says yes to every comparison."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return (
            True
            if func.__name__ in ("equal", "all", "le", "eq")
            else super().__torch_function__(func, types, args)
        )


def test_a_tensor_that_answers_comparisons_itself_is_refused():
    wrong = torch.zeros(2).as_subclass(Liar)
    with pytest.raises(Mismatch, match="is not a tensor"):
        assert_close(wrong, torch.ones(2), dtype=torch.float32)
    with pytest.raises(Mismatch, match="is not a tensor"):
        assert_equal(wrong, torch.ones(2))
    with pytest.raises(Mismatch):
        assert_true((wrong >= 1).any(), "at least one")


def test_infinity_is_equal_only_to_itself():
    infinite = torch.tensor([-torch.inf, 1.0])
    assert_close(infinite, infinite, dtype=torch.float32)
    for wrong in (-1e30, torch.inf, torch.nan):
        with pytest.raises(Mismatch):
            assert_close(torch.tensor([wrong, 1.0]), infinite, dtype=torch.float32)


def test_near_misses_are_shown_with_the_digits_that_differ():
    with pytest.raises(Mismatch) as caught:
        assert_close(
            torch.tensor(3.00001, dtype=torch.float64), torch.tensor(3.0).double(), dtype=torch.float64
        )
    assert caught.value.where == "first at []: expected 3, got 3.00001"
