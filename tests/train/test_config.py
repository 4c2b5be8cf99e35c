"""Composition of configs: every recipe, every kind of override, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tiny_audio.errors import UserError
from tiny_audio.train.build import build_model
from tiny_audio.train.config import (
    CONFIG_FOLDER,
    PROJECTOR_TYPES,
    SCHEMA,
    check_config,
    compose_config,
    config_to_yaml,
    experiment_names,
    resolve_model_path,
)
from tiny_audio.train.parameters import parameter_table

EXPERIMENTS = [
    "archive/lora_decoder",
    "mac_minimal",
    "mosa",
    "nano",
    "projector_only",
    "qwen3_8b",
    "small",
    "stage1",
]


def test_all_recipes_are_shipped() -> None:
    assert set(EXPERIMENTS) <= set(experiment_names())


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_composes_and_survives_a_second_check(name: str) -> None:
    config = compose_config([f"+experiments={name}"])
    assert config.output_dir == f"outputs/{name.rpartition('/')[2]}"
    assert check_config(OmegaConf.create(OmegaConf.to_container(config))) == config


def test_the_default_experiment_is_nano() -> None:
    assert compose_config() == compose_config(["+experiments=nano"]) == compose_config(["experiments=nano"])


def test_defaults_cover_the_schema_and_nothing_else() -> None:
    defaults = OmegaConf.load(CONFIG_FOLDER / "config.yaml")
    assert {key for key in SCHEMA if OmegaConf.select(defaults, key, default="absent") == "absent"} == set()
    check_config(compose_config())


def test_projector_types_are_those_that_exist() -> None:
    from tiny_audio.hub.asr_projectors import PROJECTORS

    assert set(PROJECTOR_TYPES) == set(PROJECTORS)


def test_recipes_say_what_the_design_says() -> None:
    stage1 = compose_config(["+experiments=stage1"])
    assert stage1.model.encoder_model_name == "facebook/hubert-xlarge-ll60k"
    assert stage1.model.decoder_model_name == "HuggingFaceTB/SmolLM3-3B"
    assert (stage1.model.projector_type, stage1.model.stack_factor) == ("swiglu", 5)
    assert stage1.model.projector_hidden_size == 8192
    assert (stage1.encoder_lora.r, stage1.encoder_lora.lora_alpha) == (8, 8)
    assert list(stage1.encoder_lora.target_modules) == ["q_proj", "k_proj"]
    assert (stage1.peft.peft_method, stage1.peft.r, stage1.peft.lora_alpha) == ("lora", 64, 32)
    assert list(stage1.peft.target_modules) == ["q_proj", "v_proj"]
    assert stage1.data.train == "hub:speechbrain/LoquaciousSet/large:train"
    decoder_only = compose_config(["+experiments=archive/lora_decoder"])
    assert (decoder_only.encoder_lora.r, decoder_only.peft.r) == (0, 64)
    qwen = compose_config(["+experiments=qwen3_8b"])
    assert (qwen.model.decoder_model_name, qwen.encoder_lora.r, qwen.peft.r) == ("Qwen/Qwen3-8B", 16, 8)
    mac = compose_config(["+experiments=mac_minimal"])
    assert (mac.training.max_steps, mac.peft.peft_method) == (20, None)
    assert mac.model == compose_config(["+experiments=small"]).model
    projector_only = compose_config(["+experiments=projector_only"])
    assert (projector_only.training.max_steps, projector_only.training.gradient_checkpointing) == (
        50000,
        True,
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("+training.learning_rate=1", "training.learning_rate", 1.0),
        ("++training.max_steps=7", "training.max_steps", 7),
        ("training.bf16=false", "training.bf16", False),
        ("training.bf16=auto", "training.bf16", "auto"),
        ("training.batch_seconds=auto", "training.batch_seconds", "auto"),
        ("training.batch_seconds=12", "training.batch_seconds", 12),
        (
            "training.resume=outputs/a run/checkpoints/step-5",
            "training.resume",
            "outputs/a run/checkpoints/step-5",
        ),
        ("training.hub_model_id=me/mine", "training.hub_model_id", "me/mine"),
        ("peft.peft_method=null", "peft.peft_method", None),
        ("encoder_lora.target_modules=[q_proj,v_proj]", "encoder_lora.target_modules", ["q_proj", "v_proj"]),
        ("data.train=[corpus:train,my/folder]", "data.train", ["corpus:train", "my/folder"]),
        ("data.train=hub:a/b/large:train", "data.train", "hub:a/b/large:train"),
        ("data.train=/tapes/it's (1)/x.parquet", "data.train", "/tapes/it's (1)/x.parquet"),
        (r"data.train=C:\tapes\set", "data.train", r"C:\tapes\set"),
        ("model.prompt=Write: <audio>", "model.prompt", "Write: <audio>"),
        ("model.encoder_config.num_hidden_layers=2", "model.encoder_config.num_hidden_layers", 2),
        ("model.encoder_config.hidden_act=relu", "model.encoder_config.hidden_act", "relu"),
        ("augmentation.speed=[0.8,1.2]", "augmentation.speed", [0.8, 1.2]),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    assert OmegaConf.select(compose_config([override]), key) == value


def test_a_later_override_wins() -> None:
    assert compose_config(["seed=1", "seed=2"]).seed == 2


def test_a_whole_table_is_replaced_not_merged() -> None:
    config = compose_config(["model.encoder_config={model_type:hubert,hidden_size:16}"])
    assert dict(config.model.encoder_config) == {"model_type": "hubert", "hidden_size": 16}


def test_a_named_model_brings_its_own_architecture() -> None:
    model = compose_config(["model.encoder_model_name=a/b", "model.decoder_model_name=c/d"]).model
    assert not model.encoder_config and not model.decoder_config and not model.feature_extractor
    assert model.tokenizer is None


MISTAKES = [
    (
        "training.learnig_rate=3",
        'unknown config key "training.learnig_rate". Did you mean "training.learning_rate"?',
    ),
    ("+training.learnig_rate=3", 'Did you mean "training.learning_rate"?'),
    ("++training.learnig_rate=3", 'Did you mean "training.learning_rate"?'),
    ("+training.foo=1", 'unknown config key "training.foo"'),
    ("learning_rate=3", 'Did you mean "training.learning_rate"?'),
    ("training.lr=3", 'Did you mean "training.learning_rate"?'),
    ("trainng.max_steps=3", 'Did you mean "training.max_steps"?'),
    ("model.batch_seconds=3", 'Did you mean "training.batch_seconds"?'),
    ("training=3", '"training" is a section'),
    ("training.learning_rate=-1", "training.learning_rate=-1.0: expected more than 0"),
    ("training.learning_rate=abc", "training.learning_rate=abc: expected a number"),
    ("training.learning_rate=true", "training.learning_rate=true: expected a number"),
    ("training.learning_rate=nan", "expected a finite number"),
    ("training.learning_rate=", "expected a number"),
    ("training.encoder_learning_rate=x", "expected a number or null"),
    ("training.max_steps=1.5", "training.max_steps=1.5: expected a whole number"),
    ("training.max_steps=null", "training.max_steps=null: expected a whole number"),
    (
        "training.batch_seconds=atuo",
        'training.batch_seconds=atuo: expected a number or auto. Did you mean "auto"?',
    ),
    ("training.batch_seconds=0", "training.batch_seconds=0: expected more than 0"),
    ("training.batch_seconds=null", "training.batch_seconds=null: expected a number or auto"),
    ("training.batch_seconds=true", "training.batch_seconds=true: expected a number or auto"),
    ("training.batch_seconds=[9]", "expected a number or auto"),
    ("training.bf16=1", "expected one of auto, true, false"),
    ("training.tracker=wanb", 'Did you mean "wandb"?'),
    ("training.resume=3", "expected true, false or the path of a checkpoint"),
    (
        "model.projector_type=swigle",
        'expected one of mlp, swiglu, mosa, moe, qformer. Did you mean "swiglu"?',
    ),
    ("model.stack_factor=0", "expected at least 1"),
    ("model.prompt=Hello", "expected exactly one <audio>"),
    ("model.encoder_config.hiden_size=3", 'Did you mean "hidden_size"?'),
    ("model.encoder_config.model_type=whispr", 'Did you mean "whisper"?'),
    ("model.encoder_config={}", "model.encoder_model_name=null: name a model"),
    ("model.tokenizer=null", "model.tokenizer=null"),
    ("model.encoder_model_name=''", "is empty"),
    ("encoder_lora.target_modules=q_proj", "expected a list such as [q_proj,k_proj]"),
    ("encoder_lora.r=-1", "encoder_lora.r=-1: expected at least 0"),
    ("encoder_lora.lora_dropout=1.5", "expected at most 0.99"),
    ("peft.peft_method=none", "expected one of lora, null"),
    ("augmentation.speed=[1.1,0.9]", "low <= high"),
    ("augmentation.speed=[0,1]", "expected more than 0"),
    ("augmentation.speed=1", "expected two numbers [low, high]"),
    ("augmentation.noise_probability=2", "expected at most 1"),
    ("data.train=null", "expected a SOURCE or a list of them"),
    ("data.train=[]", "expected a SOURCE or a list of them"),
    ("data.eval=[a,b]", "data.eval=['a', 'b']: expected a text"),
    ("data.min_seconds=99", "must be below data.max_seconds"),
    ("data.train=a,b", "one value at a time"),
    ("data.train=[a", "not a list, table or quoted text that closes"),
    ("~data.train", "a key cannot be deleted"),
    ("~data.train=x", "a key cannot be deleted"),
    ("output_dir=${nothing.here}", "config: "),
    ("model.feature_extractor.hop_lenght=320", 'Did you mean "hop_length"?'),
    ("model.feature_extractor.n_fft=abc", "model.feature_extractor describes nothing that can be built"),
    ("model.feature_extractor.feature_extractor_type=Foo", "expected one of WhisperFeatureExtractor"),
    ("model.encoder_config.hidden_size=abc", "expected int, got str (value: 'abc')"),
    ("model.encoder_config.layerdrop=x", "'layerdrop'"),
    ("model.decoder_config.num_attention_heads=3", "The hidden size (128) is not a multiple"),
    ("ctc.vocabulary=", "ctc.vocabulary is empty"),
    ("+experiments=stage2", 'no experiment "stage2". Did you mean "stage1"?'),
    ("+experiments=", 'no experiment ""'),
    ("+experiments=../config", "no experiment"),
    ("stage1", "Did you mean +experiments=stage1?"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["encoder_lora", "peft"])
def test_adapters_have_modules_to_be_put_into(section: str) -> None:
    with pytest.raises(UserError, match=rf"{section}\.target_modules=\[\]"):
        compose_config([f"{section}.r=4", f"{section}.target_modules=[]"])
    compose_config([f"{section}.target_modules=[]"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.decoder_config.hidden_act=foo", "model.decoder_config describes nothing .* KeyError"),
        ("model.encoder_config.hidden_size=0", "model.encoder_config describes nothing"),
        ("model.encoder_config={model_type: llama}", "no audio encoder of type 'llama'"),
        ("model.projector_activation=foo", "unknown projector_activation"),
    ],
)
def test_sizes_that_only_show_in_the_towers_are_one_line(override: str, message: str) -> None:
    config = compose_config([override])
    for build in (parameter_table, build_model):
        with pytest.raises(UserError, match=message) as caught:
            build(config)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "model.feature_extractor.feature_size=40",
        "model.feature_extractor.sampling_rate=8000",
        "model.feature_extractor.hop_length=0",
        "model.encoder_config.conv_kernel_size=8",
    ],
)
def test_features_that_do_not_fit_the_encoder_are_one_line(override: str) -> None:
    with pytest.raises(UserError, match=r"model\.feature_extractor describes nothing"):
        build_model(compose_config([override]))


def test_only_one_experiment_at_a_time() -> None:
    with pytest.raises(UserError, match="only one experiment"):
        compose_config(["+experiments=small", "experiments=stage1"])


def test_a_composed_config_stays_typed() -> None:
    config = compose_config()
    with pytest.raises(OmegaConfBaseException):
        config.training.max_steps = "many"
    with pytest.raises(OmegaConfBaseException):
        config.training.max_step = 3


def test_a_config_without_a_key_is_refused() -> None:
    values = OmegaConf.to_container(compose_config())
    assert isinstance(values, dict)
    del values["training"]["max_steps"]
    with pytest.raises(UserError, match=r"training\.max_steps has no value"):
        check_config(OmegaConf.create(values))


def test_composing_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose_config(["seed=3"])
    with pytest.raises(UserError):
        compose_config(["sed=3"])
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert not GlobalHydra.instance().is_initialized()


def test_references_are_resolved_in_the_written_config() -> None:
    config = compose_config(["output_dir=outputs/${seed}", "seed=7"])
    text = config_to_yaml(config, {"git": "abc", "data_revision": None})
    written = OmegaConf.create(text)
    assert written.output_dir == "outputs/7"
    assert written.run == {"git": "abc", "data_revision": None}
    del written["run"]
    assert check_config(written) == config


def test_model_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINY_AUDIO_MODELS", raising=False)
    (tmp_path / "models" / "openai" / "whisper-base").mkdir(parents=True)
    assert resolve_model_path("openai/whisper-base") == "openai/whisper-base"
    assert resolve_model_path(str(tmp_path / "models")) == str(tmp_path / "models")
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path / "models"))
    assert Path(resolve_model_path("openai/whisper-base")) == tmp_path / "models" / "openai" / "whisper-base"
    assert resolve_model_path("openai/whisper-small") == "openai/whisper-small"
    for path in ("./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c"):
        with pytest.raises(UserError, match="no model folder"):
            resolve_model_path(path)


def test_weights_of_sources_pass_the_command_line() -> None:
    config = compose_config(["data.train=[recordings/train*3,corpus:train*0.5,hub:a/b:train]"])
    assert list(config.data.train) == ["recordings/train*3", "corpus:train*0.5", "hub:a/b:train"]
    assert compose_config(["data.train=recordings*2"]).data.train == "recordings*2"
