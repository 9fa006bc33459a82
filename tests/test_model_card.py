"""The page of a model: everything on it is true of the run, and what is not known is said."""

import json
import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import ModelCard
from run_folders import HISTORY, run_info, write_run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_gradkit.publishing.facts import read_model
from hf_gradkit.publishing.methods import methods_of
from hf_gradkit.publishing.page import BEGIN, END, model_page, write_page
from hf_gradkit.publishing.papers import PAPERS
from hf_gradkit.reporting.run_info import data_of, origin, without_secrets
from toy_method import HardestTwice


@pytest.fixture
def card_of(tokenizer, tmp_path):
    """Writes a run's folder and returns its page."""

    def make(info=None, repo="someone/tiny", **given):
        folder = tmp_path / "run"
        write_run(folder, tokenizer, info, **{key: given.pop(key) for key in list(given) if key in STATE})
        return model_page(read_model(folder, repo, **given), [])

    return make


STATE = ("global_step", "max_steps", "best_global_step", "log_history")


def section(card, title):
    found = re.search(rf"^## {title}\n(.*?)(?=^## |^<!--)", card.text, re.S | re.M)
    return found[1] if found else None


def test_metadata(card_of):
    data = card_of().data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-0.6B"
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["trl-lib/ultrafeedback_binarized"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["tags"] == ["hf_gradkit", "trl", "dpo", "rpo", "regularized-preference-optimization", "madpo"]
    assert "license" not in data  # not known: not invented
    assert "language" not in data


def test_results_are_those_of_the_last_evaluation(card_of):
    results = {of.metric_type: of for of in card_of().data.eval_results}
    assert {name: of.metric_value for name, of in results.items()} == {"loss": 0.625, "rewards/accuracies": 0.875}
    assert results["loss"].dataset_type == "trl-lib/ultrafeedback_binarized"
    assert results["loss"].dataset_split == "test"


def test_results_of_the_best_step_where_its_weights_were_loaded(card_of):
    settings = {**run_info()["settings"], "load_best_model_at_end": True}
    card = card_of(run_info(settings=settings), best_global_step=1)
    assert {of.metric_type: of.metric_value for of in card.data.eval_results}["loss"] == 0.5
    assert "Evaluation at step 1 (the best step, whose weights these are)" in card.text


def test_a_figure_that_is_not_finite_is_no_result(card_of):
    card = card_of(log_history=[{"step": 2, "eval_loss": float("nan"), "eval_rewards/accuracies": 0.5}])
    assert [of.metric_type for of in card.data.eval_results] == ["rewards/accuracies"]
    assert "| Loss | nan |" in card.text


def test_which_rpo_and_in_which_form(card_of):
    said = section(card_of(), "Method")
    assert "Regularized Preference Optimization, in its average form" in said
    assert "with eta 0.2" in said
    assert "neither NVIDIA's Reward-aware" in said
    options = {"settings": {**run_info()["settings"], "loss_kwargs": {"rpo": {"eta": 0.01}}}}
    said = section(card_of(run_info(**options)), "Method")
    assert "in its cumulative form" in said
    assert "`eta * beta * log p(chosen)`, with eta 0.01" in said


def test_each_method_with_its_options_and_paper(card_of):
    card = card_of()
    said = section(card, "Method")
    assert "Margin-adaptive DPO" in said
    assert "c_max 3.0, steepness 1.0, tau 6.907" in said
    assert "were divided by 1.5" in said
    cited = section(card, "Citations")
    for number in ("2305.18290", "2405.16436", "2510.05342", "2410.13828", "2602.14462"):
        assert f"eprint = {{{number}}}" in cited
    assert "2502.06733" not in cited  # LinUpper was not used


def test_every_method_that_comes_with_us_has_a_known_paper():
    for name in ("linupper", "quadratic", "extremes"):
        (method,) = methods_of({"trainer": "SFTTrainer", "weighting": name, "settings": {}})
        assert method.paper is PAPERS["2502.06733"]
        assert method.options["temperature"] == 1.0
    for name in ("rpo", "beta_dpo"):
        (method,) = methods_of({"trainer": "DPOTrainer", "loss_type": [name], "settings": {}})
        assert method.paper.authors
    filtered = {"trainer": "DPOTrainer", "settings": {"data_filter": "fifa", "data_filter_kwargs": {"fraction": 0.1}}}
    assert [method.name for method in methods_of(filtered)] == ["dpo", "fifa"]


def test_a_method_of_the_users_own_is_described_by_its_docstring():
    (method,) = methods_of({"trainer": "SFTTrainer", "weighting": "toy_method:HardestTwice", "settings": {}})
    assert method.name == "HardestTwice"
    assert method.text == f"{HardestTwice.__doc__.splitlines()[0].rstrip('.')} (weighting of examples)."
    (gone,) = methods_of({"trainer": "SFTTrainer", "weighting": "no.such.module:Mine", "settings": {}})
    assert gone.text == "`no.such.module:Mine`, a weighting of examples of the author's own."


def test_command_config_versions_and_no_path_of_this_machine(card_of):
    card = card_of()
    again = section(card, "Run it again")
    assert "gradkit dpo --config dpo.yaml --hub_token ..." in again
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", again, re.S)[1]) == run_info()["config"]
    settings = section(card, "Settings and versions")
    assert "| `learning_rate` | `5e-07` |" in settings
    assert "secret" not in card.text
    assert "| trl | 1.16.0 |" in settings
    assert "Processes: 2 (MULTI_GPU)" in settings


def test_paths_of_this_machine_are_shortened_wherever_they_are(card_of):
    command = "gradkit dpo --dataset_name /mnt/secret/pairs.jsonl --reward_model_name_or_path '/mnt/my secret/reward' "
    command += """--loss_kwargs '{"rpo": "/mnt/secret/x.json"}' --chat_template_path ~/secret/chat.jinja"""
    config = {"model_name_or_path": "/mnt/secret/model", "hub_model_id": "someone/name", "share": "1/2"}
    settings = {"reward_model_name_or_path": "/mnt/secret/reward", "eval_url": "https://host/a/b"}
    text = card_of(run_info(command=command, config=config, settings=settings)).text
    assert "--dataset_name .../pairs.jsonl --reward_model_name_or_path .../reward --loss_kwargs" in text
    for shown in ('{"rpo": ".../x.json"}', ".../chat.jinja", "model_name_or_path: .../model", "share: 1/2"):
        assert shown in text
    assert "hub_model_id: someone/name" in text
    assert "https://host/a/b" in text
    assert "/mnt" not in text
    assert "secret" not in text


def test_entanglement_and_consistency(card_of):
    said = section(card_of(), "Gradient entanglement")
    assert "mean of 2 logs: in 50% the chosen answer rises and the rejected one falls, in 38% both fall" in said
    assert "chosen answers was -1.50 nats from the reference's, that of the rejected ones -2.50" in said
    said = section(card_of(), "Consistency of workers")
    assert "loss dispersion 1.25, cosine of the workers' gradients 0.5" in said
    assert "in one epoch: 3." in said


def test_rows_that_workers_shared_are_those_of_one_epoch(card_of):
    """Each log counts from its epoch's start: a sum over logs would count a row as often as it was logged."""
    ratio = {"consistency/direction_ratio": 0.5}
    logs = [{"step": step, **ratio, "consistency/repeated": n} for step, n in enumerate((13.0, 69.0, 40.0), 1)]
    assert "in one epoch: 69. [" in section(card_of(log_history=logs), "Consistency of workers")
    logs[1]["consistency/missing"] = 12.0
    assert "in one epoch: 69; that none saw: 12. [" in section(card_of(log_history=logs), "Consistency of workers")
    logs = [{"step": 1, **ratio}]
    assert "in one epoch: 0. [" in section(card_of(log_history=logs), "Consistency of workers")


def test_what_is_not_known_is_said(card_of):
    card = card_of({}, log_history=[])
    assert "[None]" not in card.text
    assert "This is a trained model whose origin was not recorded." in card.text
    assert "with hf_gradkit" not in card.text
    assert "The name of the training data was not recorded." in card.text
    assert "How it was trained was not recorded." in card.text
    assert "No figures were recorded" in card.text
    assert "The run did not evaluate" in card_of(log_history=[]).text
    assert "No privacy audit was made" in card.text
    assert "base_model" not in card.data.to_dict()
    assert card.data.eval_results is None


def test_a_model_that_nobody_trained_is_not_said_to_be_trained(tokenizer, tmp_path):
    folder = write_run(tmp_path / "model", tokenizer, {})
    (folder / "trainer_state.json").unlink()
    text = model_page(read_model(folder, "someone/model"), []).text
    assert "This is a model whose origin was not recorded." in text
    assert "No figures were recorded beside the model." in text
    assert "with hf_gradkit" not in text


def test_rows_that_were_held_out_are_named(card_of):
    said = "It had 512 rows when the training began. 30 % of the rows had been held out at random before"
    assert said in section(card_of(run_info(settings={"hold_out_fraction": 0.3})), "Data")


def test_the_code_asks_the_model_as_it_was_trained(card_of):
    assert "apply_chat_template" in section(card_of(run_info(conversational=True)), "Use it")
    assert "apply_chat_template" in section(card_of(), "Use it")  # of an earlier release, which did not record it
    plain = section(card_of(run_info(conversational=False)), "Use it")
    assert "apply_chat_template" not in plain
    assert 'tokenizer("What is a gradient?"' in plain


def test_a_run_that_goes_on_says_so(card_of):
    assert "**Its training is not over: this is step 2 of 7.**" in card_of(max_steps=7).text


def test_a_local_base_is_followed_to_its_origin(card_of, tokenizer, tmp_path):
    write_run(tmp_path / "sft", tokenizer)  # itself from Qwen/Qwen3-0.6B
    info = run_info(base_model=str(tmp_path / "sft"), base_model_is_local=True)
    card = card_of(info)
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert "a local model (`sft`), fine-tuned from [Qwen/Qwen3-0.6B]" in card.text
    gone = card_of(run_info(base_model="runs/gone", base_model_is_local=True))
    assert gone.data.base_model is None  # `runs/gone` is no name of the Hub, though it looks like one
    assert "a local model (`gone`), whose own origin was not recorded" in gone.text


def test_local_data_is_followed_to_its_source(card_of, tmp_path):
    figures = {"source": "trl-lib/pairs", "kept": 30, "rows": 100, "by": "fifa"}
    (tmp_path / "selection.json").write_text(json.dumps(figures))
    data = [{"name": str(tmp_path / "selected.jsonl"), "role": "train", "local": True}]
    card = card_of(run_info(data=data))
    assert "`selected.jsonl` (30 of 100 rows of [trl-lib/pairs]" in card.text
    assert card.data.datasets == ["trl-lib/pairs"]
    assert str(tmp_path) not in card.text


def test_what_a_person_wrote_stays_and_drafts_go(card_of, tmp_path, tokenizer):
    folder = tmp_path / "run"
    first = card_of(license="mit")
    folder.joinpath("README.md").write_text(
        str(first).replace(BEGIN, f"Read this first.\n\n{BEGIN}").replace(END, f"{END}\n\nThanks to all.")
    )
    again = card_of(log_history=HISTORY[:2])
    assert again.text.count("# tiny\n") == 1
    assert again.text.index("Read this first.") < again.text.index(BEGIN)
    assert again.text.index("Thanks to all.") > again.text.index(END)
    assert "Evaluation at step 1" in again.text
    assert again.data.license == "mit"
    for draft in (
        "---\ntags:\n- generated_from_trainer\n---\n# Model Card for x\n",
        "# x\n[More Information Needed]\n",
    ):
        (folder / "README.md").write_text(draft)
        assert card_of().text.strip().startswith(BEGIN)
    (folder / "README.md").write_text("# My own page\n\nWritten by hand.\n")
    card = card_of()
    assert card.text.index("Written by hand.") < card.text.index(BEGIN)


def test_the_card_is_one_that_the_hub_reads(card_of, tmp_path):
    write_page(card_of(language=["en"], tags=["mine"]), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.language == ["en"]
    assert card.data.tags[-1] == "mine"
    assert not list(tmp_path.glob("*.tmp"))


def test_tokens_are_in_no_command():
    command = [
        "gradkit",
        "sft",
        "--hub_token",
        "s",
        "--hub-token=s",
        "--eos_token",
        "<end>",
        "--push_to_hub_token",
        "s",
    ]
    hidden = "gradkit sft --hub_token ... --hub-token=... --eos_token <end> --push_to_hub_token ..."
    assert without_secrets(command) == hidden.split()
    config = {"hub_token": "s", "env": {"HF_TOKEN": "s"}, "beta": 0.1}
    assert origin(["x"], config, [])["config"] == {"beta": 0.1}


def test_a_data_set_of_the_hub_is_known_by_its_files(tmp_path):
    rows = load_dataset("json", data_files=str(write_rows(tmp_path)), split="train", cache_dir=str(tmp_path / "json"))
    assert data_of(rows, "train") == []  # a local file
    folder = tmp_path / "cache" / "someone___rows" / "default" / "0.0.0" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "rows-train.arrow").write_bytes(Path(rows.cache_files[0]["filename"]).read_bytes())
    found = data_of(Dataset.from_file(str(folder / "rows-train.arrow"), split="train"), "train")
    assert found == [{"name": "someone/rows", "role": "train", "config": None, "split": "train", "revision": "a" * 40}]


def test_an_adapter_names_its_base_and_where_it_is_not(card_of, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = write_run(tmp_path / "sft", tokenizer)  # itself from Qwen/Qwen3-0.6B
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path / "adapter")
    card = model_page(read_model(tmp_path / "adapter", "someone/adapter"), [])
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen3-0.6B", "adapter")
    assert (data["library_name"], data["tags"][-1]) == ("peft", "lora")
    assert "an adapter of a local model (`sft`), fine-tuned from [Qwen/Qwen3-0.6B]" in card.text
    assert "it runs only where that model is" in card.text
    assert "LoRA adapter: rank 2, alpha 8" in card.text
    assert "More Information Needed" not in card.text


def test_a_reward_model_gives_scores(tokenizer, tmp_path):
    config = AutoModelForCausalLM.from_pretrained(write_run(tmp_path / "base", tokenizer, {})).config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    (tmp_path / "reward" / "gradkit_run.json").write_text(json.dumps({"trainer": "RewardTrainer", "base_model": ""}))
    card = model_page(read_model(tmp_path / "reward", str(tmp_path / "reward")), [])
    assert card.data.pipeline_tag == "text-classification"
    assert "reward-trainer" in card.data.tags
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    names = {}
    exec(code, names)  # the folder stands for the repository
    assert type(names["model"]).__name__ == "LlamaForSequenceClassification"


def write_rows(folder):
    (folder / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    return folder / "rows.jsonl"
