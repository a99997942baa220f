"""The references give what PyTorch and Hugging Face transformers give, where the conventions coincide."""

import pytest

from benchmarks.agreement import ALLOWED, COMPARISONS, difference
from dojo import catalogue


@pytest.mark.parametrize(("kata", "peer"), COMPARISONS)
def test_the_reference_agrees_with_its_peer(kata, peer):
    if catalogue.lacking(kata):
        pytest.skip(f"{kata} needs {catalogue.lacking(kata)}")
    if peer.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    worst, epsilon, count = difference(COMPARISONS[kata, peer])
    assert count
    assert worst <= ALLOWED * epsilon
