"""Figures of the alpha-DPO paper's claims in the exact simulator, each with its verdicts."""
