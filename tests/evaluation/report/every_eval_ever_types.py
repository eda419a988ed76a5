"""Every Eval Ever 0.3.0 in our own words: required and optional fields, types and enumerations; unknown fields fail."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SourceMetadata(Strict):
    source_name: str
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]


class Library(Strict):
    name: str
    version: str
    additional_details: dict[str, str]


class ModelDetails(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]
    deployment_type: Literal["self_deployed", "externally_managed", "unknown"]
    model_availability: Literal["open_weights", "closed_weights", "unknown"]


class ModelInfo(Strict):
    name: str
    id: str = Field(pattern=r"^[^/]+/[^/]+$")
    developer: str = ""
    additional_details: ModelDetails


class JudgeInfo(Strict):
    name: str
    id: str
    additional_details: ModelDetails


class JudgeConfig(Strict):
    model_info: JudgeInfo


class Scoring(Strict):
    judges: list[JudgeConfig] = Field(min_length=1)
    input_prompt: str


class OtherSource(Strict):
    dataset_name: str
    source_type: Literal["other"]
    additional_details: dict[str, str]


class HubSource(Strict):
    dataset_name: str
    source_type: Literal["hf_dataset"]
    hf_repo: str
    samples_number: int
    additional_details: dict[str, str]


class MetricConfig(Strict):
    evaluation_description: str
    metric_id: str
    metric_name: str
    metric_unit: str
    lower_is_better: bool
    score_type: Literal["continuous"]
    min_score: float | None = Field(...)
    max_score: float | None = Field(...)
    additional_details: dict[str, str]
    llm_scoring: Scoring | None = None


class StandardError(Strict):
    value: float
    method: str


class Interval(Strict):
    lower: float
    upper: float
    confidence_level: float = Field(ge=0, le=1)
    method: str


class Uncertainty(Strict):
    standard_error: StandardError | None = None
    confidence_interval: Interval | None = None
    num_samples: int


class Score(Strict):
    score: float
    uncertainty: Uncertainty


class Arguments(Strict):
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    execution_command: str | None = None


class Generation(Strict):
    generation_args: Arguments
    additional_details: dict[str, str]


class Result(Strict):
    evaluation_result_id: str
    evaluation_name: str
    source_data: OtherSource | HubSource = Field(discriminator="source_type")
    metric_config: MetricConfig
    score_details: Score
    generation_config: Generation


class Detailed(Strict):
    format: Literal["jsonl"]
    file_path: str = Field(
        pattern=r"^data/[^/]+/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}_samples\.jsonl$"
    )
    hash_algorithm: Literal["sha256", "md5"]
    checksum: str
    total_rows: int


class Log(Strict):
    schema_version: Literal["0.3.0"]
    evaluation_id: str
    evaluation_timestamp: str = Field(pattern=r"^\d+$")
    retrieved_timestamp: str = Field(pattern=r"^\d+$")
    source_metadata: SourceMetadata
    eval_library: Library
    model_info: ModelInfo
    evaluation_results: list[Result] = Field(min_length=1)
    detailed_evaluation_results: Detailed | None = None


class Input(Strict):
    raw: str
    reference: list[str]


class Output(Strict):
    raw: list[str]


class Attribution(Strict):
    turn_idx: int = Field(ge=0)
    source: str
    extracted_value: str
    extraction_method: str
    is_terminal: bool


class Judgement(Strict):
    score: float
    is_correct: bool


class Instance(Strict):
    schema_version: Literal["0.3.0"]
    evaluation_id: str
    model_id: str
    evaluation_name: str
    sample_id: str
    sample_hash: str
    interaction_type: Literal["single_turn"]
    input: Input
    output: Output
    answer_attribution: list[Attribution]
    evaluation: Judgement
