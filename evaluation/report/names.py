"""How metrics are called and ordered in a report. A metric that is not known here is shown under its own name."""

from __future__ import annotations

import re

# Pattern of a metric's name -> title for people. The first that matches counts; they are also the order of columns,
# and the first directed one of a leaderboard is what its rows are sorted by.
HEADLINE: dict[str, str] = {
    r"win_rate": "Win rate",
    r"win_rate_length_controlled": "Win rate, length-controlled",
    r"win_rate_against_reference": "Win rate against people",
    r"elo": "Elo",
    r"league_win_rate": "Win rate in the league",
    r"best_of_\d+": "",
    r"agreement": "Agreement with people",
    r"cohen_kappa": "Agreement beyond chance",
    r"consistency": "Consistency",
    r"position_bias": "Position bias",
    r"kl_k1": "KL to the reference",
    r"accuracy": "Accuracy",
    r"rewardbench": "RewardBench",
    r"mean_of_subsets": "Mean of subsets",
    r"best_of_candidates": "Best of candidates",
    r"pairwise_loss": "Pairwise loss",
    r"calibration_error": "Calibration error",
    r"baseline_longest": "Accuracy by length alone",
    r"fid@\d+": "FID",
    r"fd_\w+@\d+": "Fréchet distance",
    r"extrapolated_\w+@\d+": "Fréchet distance, extrapolated",
    r"is(_\w+)?@\d+": "Inception Score",
    r"(kid|kd_\w+)@\d+": "Kernel distance",
    r"(md_\w+|mind)@\d+": "Monge distance",
    r"cmmd(_\w+)?@\d+": "CMMD",
    r"precision(_\w+)?@\d+": "Precision",
    r"recall(_\w+)?@\d+": "Recall",
    r"coverage(_\w+)?@\d+": "Coverage",
    r"training_copies_\w+@\d+": "Training images copied",
    r"auc": "Detector AUC",
    r"accuracy_frozen": "Detector accuracy",
    r"auc_control": "AUC, real against real",
    r"auc_own_generator": "AUC, own generator",
    r"auc_other_generators": "AUC, other generators",
    r"bits_per_byte": "Bits per byte",
    r"perplexity(_token)?": "Perplexity",
    r"(?!elo/|rewardbench/)[^/]+/[^/]+": "",
    r"mauve": "MAUVE",
    r"mean_length": "Mean length",
    r"unsafe_compliance_rate": "Unsafe compliance",
    r"over_refusal_rate": "Over-refusal",
    r"copied_rate": "Copied text",
    r"personal_data_rate": "Personal data",
    r"lexicon_rate": "Listed terms",
    r"degenerate_rate": "Degenerate",
    r"expected_max_toxicity@\d+": "Toxicity, worst sample",
    r"truthfulqa_mc1": "TruthfulQA MC1",
    r"truthfulqa_mc2": "TruthfulQA MC2",
    r"crows_pairs_stereotype": "CrowS-Pairs",
    r"stereoset_icat": "StereoSet ICAT",
    r"stereoset_ss": "StereoSet stereotypes",
    r"winogender_gender_gap": "Winogender gap",
    r"bbq_bias_ambiguous": "BBQ bias",
    r"sycophancy_flip_rate": "Sycophancy",
    r"sycophancy_rate": "Agrees with the user",
}
"""An empty title: the metric's own name, as of lm-eval's TASK/METRIC; so below."""
# What suites measure besides; these columns stand behind the first table.
OTHER: dict[str, str] = {
    r"win_probability": "Probability of a win",
    r"win_rate_by_length": "Win rate by length",
    r"(baseline_|reference_)?judge_reward": "",
    r"proxy_reward": "Training reward",
    r"kl_k3": "KL to the reference, k3",
    r"accuracy_chosen_(longer|shorter)": "",
    r"baseline_shortest": "Accuracy by shortness alone",
    r"baseline_chance": "Accuracy by chance",
    r"brier_score": "Brier score",
    r"mean_margin": "Mean margin",
    r"length_slope": "Length slope",
    r"rewardbench/[\w ]+": "",
    r"ties_score": "RewardBench 2, Ties",
    r"ensemble_accuracy(_unanimous|_split)?": "",
    r"ensemble_unanimous": "Unanimous votes",
    r"ensemble_alpha": "Agreement within the ensemble",
    r"ensemble_disagreement": "Disagreement of the ensemble",
    r"missing_verdicts": "Missing verdicts",
    r"exact_agreement": "Agreement, ties exact",
    r"krippendorff_alpha": "Agreement (alpha)",
    r"judge_ties": "Ties by the judge",
    r"prefers_longer": "Judge prefers the longer",
    r"people_prefer_longer": "People prefer the longer",
    r"people_alpha": "Agreement among people",
    r"density(_\w+)?@\d+": "Density",
    r"nearer_to_training_\w+@\d+": "Nearer to training images",
    r"classification_accuracy@\d+": "Classification accuracy score",
    r"ap": "Average precision",
    r"eer": "Equal error rate",
    r"tpr_at_1pct_fpr": "Found at 1 % false alarms",
    r"detector_calibration_error": "Detector calibration error",
    r"auc_format_only": "AUC, file format alone",
    r"auc_metadata_only": "AUC, metadata alone",
    r"content_credentials": "Content credentials",
    r"watermark_detected": "Watermark found",
    r"watermark_false_alarms": "Watermark false alarms",
    r"(accuracy|auc) on .+": "",
    r"(word|byte)_perplexity": "",
    r"mean_document_perplexity": "Perplexity, mean of documents",
    r"batch_deviation": "Deviation by batching",
    r"mean_characters": "Mean characters",
    r"share_finished": "Finished",
    r"share_empty": "Empty",
    r"repetition_4": "Repeated 4-grams",
    r"self_bleu": "Self-BLEU",
    r"distinct_\d": "",
    r"mauve_ceiling": "MAUVE, ceiling",
    r"unsafe_compliance_any_template": "Unsafe compliance, any disguise",
    r"over_refusal_rate_corrected": "Over-refusal, corrected",
    r"unsafe_not_refused_rate_corrected": "Unsafe not refused, corrected",
    r"refusal_detector_(sensitivity|specificity)": "",
    r"contrast_pairs_told_apart": "Contrast pairs told apart",
    r"near_copied_rate": "Nearly copied text",
    r"reference_(near_)?copied_rate": "",
    r"toxicity_probability@\d+": "Toxic at least once",
    r"toxic_fraction": "Toxic samples",
    r"crows_pairs_stereotype_stereo": "CrowS-Pairs, stereotypes",
    r"crows_pairs_stereotype_antistereo": "CrowS-Pairs, anti-stereotypes",
    r"winogender_accuracy": "Winogender accuracy",
    r"winogender_changed": "Winogender, changed by gender",
    r"stereoset_lms": "StereoSet language modelling",
    r"bbq_accuracy_ambiguous": "BBQ accuracy, ambiguous",
    r"bbq_accuracy_disambiguated": "BBQ accuracy, disambiguated",
    r"bbq_bias_disambiguated": "BBQ bias, disambiguated",
    r"suggested_answer_accuracy": "Accuracy after a false suggestion",
}
_PATTERNS = [re.compile(pattern) for pattern in HEADLINE]
_TITLES = [(re.compile(pattern), title) for pattern, title in {**HEADLINE, **OTHER}.items()]


def _match(name: str) -> int | None:
    return next((index for index, pattern in enumerate(_PATTERNS) if pattern.fullmatch(name)), None)


def is_known(name: str) -> bool:
    """Whether a report has been told of a metric."""
    return any(pattern.fullmatch(name) for pattern, _ in _TITLES)


def title_of(name: str) -> str:
    """A title for people: `Fréchet distance` of `fd_digits@900`, which stays beside it as the exact name."""
    title = next((title for pattern, title in _TITLES if pattern.fullmatch(name)), "")
    return title or (name if "/" in name else (name[:1].upper() + name[1:]).replace("_", " "))


def is_headline(name: str) -> bool:
    """Whether a metric belongs into the first table of a report."""
    return _match(name) is not None


def primary_rank(name: str) -> int:
    """The place of a metric's column: known ones first, in their order."""
    index = _match(name)
    return len(_PATTERNS) if index is None else index


def short_source(source: str) -> str:
    """A data source for a caption: the last two parts of a path, embedded and hub sources as they are."""
    return source if ":" in source.split("/")[0] else "/".join(source.split("/")[-2:])
