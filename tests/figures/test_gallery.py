"""Every figure is made in a small setting, with its files and its verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from figures import gallery
from figures.claims import Claim
from figures.gallery import FIGURES, FigureError, make, make_all
from figures.save import save_figure
from prefgeo.plain import plain
from prefgeo.runs import git_revision

# name -> (settings that make it quick, the verdict that each claim must get)
SMALL = {
    "auxdpo_figure_1": ({"n_counts": 8}, [True, True]),
    "auxdpo_figure_2": ({"n_counts": 200}, [True, True]),
    "auxdpo_figure_3": ({"n_counts": 4}, [True, False]),  # beta = 1 is far from the limit: theta_loc is not theta*
    "phase_diagram": ({"resolution": 20}, [True, True]),
    "beta_sweep": ({"points": 5}, [False, True, True]),  # "needs a large beta" is wrong: any beta will do
    "convergence_rates": ({"betas": [32.0, 64.0, 128.0, 256.0]}, [True] * 8),
    "weighted_null_space": ({"starts": 2}, [True, False, False]),  # only D identifies theta in general
    "untied_dimension": ({"examples": 4, "parameters": [1, 4, 6, 8, 12]}, [True, False]),
    "relinearised": ({"betas": [1.0, 4.0], "seeds": [0]}, [True]),
    "table_7_4": ({}, [True, True, False]),  # the printed order is not that of the policy
    "mmlu_pro_study": ({}, [False, False, False, True, True]),  # no gain at this size, as the dimensions say
    # three or four seeds decide little: what they show at full size is in the figures
    "tpmm_noise": (
        {"noise": [0.1, 0.3], "seeds": 4, "n_prompts": 100},
        [False, False, False, False, False, True, True],
    ),
    "tpmm_weights": ({"entropies": [0.0, 0.05, 2.0], "seeds": 4, "n_prompts": 100}, [False, True, False, False]),
    "tpmm_degradation": (
        {"noise": [0.0, 0.3], "seeds": 4, "n_prompts": 120},
        [False, True, False, False, False, True],
    ),
    "aipo_length": (
        {"bias": [0.0, 0.06], "seeds": 3, "rounds": 4, "n_prompts": 300},
        [False, False, False, True, False, False],
    ),
    "aipo_iterations": (
        {"bias": [0.0, 0.04], "iterations": [1, 4], "pairs": 800, "seeds": 3},
        [False, False, False, False, False, True],
    ),
    "aipo_frontier": ({"bias": [0.02, 0.06], "seeds": 3, "rounds": 3, "n_prompts": 200}, [False] * 6),
    "aipo_sources": (
        {"bias": [0.0, 0.04], "seeds": 3, "pairs": 800, "rounds": 4},
        [False, True, False, False, False],
    ),
    "aipo_agreement": (
        {"skews": [0.0, 2.0], "seeds": 3, "rounds": 3, "n_prompts": 200},
        [True, False, True, False, False],
    ),
    "aipo_ablations": ({"filter_bias": [0.06], "seeds": 3, "rounds": 3, "n_prompts": 150}, [False] * 5),
    "alpha_dpo_margins": (
        {"alphas": [0.1, 1.0], "noise": [0.0, 0.3], "seeds": 3, "n_prompts": {"e4": 150, "e5": 200}},
        [False] * 6,
    ),
    "wrpo_alpha": (
        {"alphas": [0.1, 0.5, 0.9], "seeds": 3, "n_prompts": 150},
        [False, True, False, False, True, True, False],
    ),
    "wrpo_sources": ({"sources": [1, 5], "seeds": 3, "n_prompts": 150}, [False, False, False, True]),
}


def test_every_figure_without_data_has_a_small_setting():
    assert set(SMALL) == {name for name in FIGURES if not gallery.needs_data(name)}


@pytest.mark.parametrize("name", SMALL)
def test_a_figure_is_made_and_judged(name, tmp_path):
    settings, verdicts = SMALL[name]
    made = make(name, tmp_path, **settings)
    assert [claim.held for claim in made.claims] == verdicts, [claim.sentence() for claim in made.claims]
    assert [path.suffix for path in made.files] == [".png", ".pdf", ".json"]
    assert all(path.stat().st_size > 1000 for path in made.files)
    record = json.loads(made.files[2].read_text(encoding="utf-8"))
    assert record["provenance"]["revision"] == (git_revision() or "unknown")
    assert record["settings"] == plain({**gallery.load(name).SETTINGS, **settings})
    assert [entry["held"] for entry in record["claims"]] == verdicts
    assert not list(tmp_path.glob(".*")), "temporary files are left"


def test_the_vote_figure_on_two_categories(tmp_path, data_folder):
    """The real file, cut down by the number of betas; what must hold at any size is asserted."""
    made = make(
        "vote_bandit",
        tmp_path,
        data=data_folder / "mmlu_pro_votes.csv.gz",
        betas=[4.0],
        comparisons=["all", "on_policy"],
    )
    held = {claim.statement: claim.held for claim in made.claims}
    assert held["DPO does not reach RLHF's optimum when r* is not realizable"]
    assert held["AuxDPO is nearer to RLHF in J than DPO, where the comparisons determine it"]


def test_the_vote_figure_is_skipped_without_data(tmp_path):
    made = make("vote_bandit", tmp_path)
    assert made.skipped == "needs the votes file: give --data FILE or set PREFGEO_DATA to its folder"
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_settings_are_refused(tmp_path):
    with pytest.raises(FigureError, match=r"unknown figure 'phase_diagramm'\. Did you mean 'phase_diagram'\?"):
        make("phase_diagramm", tmp_path)
    with pytest.raises(FigureError, match=r"unknown figure 'nothing'\. Known: auxdpo_figure_1"):
        make_all(["untied_dimension", "nothing"], tmp_path)
    assert not list(tmp_path.iterdir()), "work was done before the unknown name was found"
    with pytest.raises(FigureError, match="has no setting 'colour'; it has examples, parameters, seed"):
        make("untied_dimension", tmp_path, colour="red")


def test_a_claim_that_failed_is_said_like_any_other():
    claim = Claim("the moon is cheese", "folklore", "rock", False)
    assert claim.sentence() == "[DID NOT HOLD] the moon is cheese (folklore). Measured: rock."


def test_a_figure_that_fails_to_save_leaves_nothing_half_written(tmp_path):
    class Broken:
        def savefig(self, path, metadata=None):
            Path(path).write_text("half")
            if str(path).endswith(".pdf"):
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        save_figure(Broken(), tmp_path, "x", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png"]


def test_numbers_become_plain_json():
    table = {"a": np.array([1.0, np.nan]), 3: (np.int64(2), np.bool_(True)), "b": np.inf}
    assert plain(table) == {"a": [1.0, None], "3": [2, True], "b": None}
