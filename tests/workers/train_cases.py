"""Run in each of two processes: train a list of cases (JSON file in, results and parameters out)."""

import json
import sys
from pathlib import Path

import torch
import trl
from transformers import DataCollatorForLanguageModeling

import hf_gradkit
from helpers import last_token_loss, logs_without_timings, make_rows, text_dataset, train
from hf_gradkit.cli.job import release
from hf_gradkit.data.tiny import train_tokenizer
from launch import report_world

CLASSES = {
    "plain": (hf_gradkit.Trainer, hf_gradkit.TrainingArguments),
    "trl": (trl.SFTTrainer, trl.SFTConfig),
    "sft": (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig),
}


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    for case in cases:
        run(case, folder, tokenizer)
    report_world()


def run(case: dict, folder: Path, tokenizer) -> None:
    dataset = text_dataset(case["rows"], "weight", "source", "uid")
    if case.get("bad_row") is not None:
        dataset = dataset.map(
            lambda row, i: {"text": "zzz" if i == case["bad_row"] else row["text"]}, with_indices=True
        )
    keywords = {}
    if case["trainer"] == "plain":
        dataset = dataset.map(lambda row: tokenizer(row["text"]), remove_columns="text")
        keywords["data_collator"] = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if case.get("own_loss"):
        keywords["per_example_loss"] = last_token_loss
    if case.get("streaming"):
        dataset = dataset.to_iterable_dataset()
    if case.get("bad_row") is not None:
        keywords["model"] = broken_model(tokenizer)
    output = folder / case["name"]
    try:
        trainer = train(
            *CLASSES[case["trainer"]],
            tokenizer,
            output,
            dataset,
            trainer_kwargs=keywords,
            resume=case.get("resume"),
            **case["options"],
        )
    except FloatingPointError as error:
        result = {"error": str(error)}
    else:
        result = result_of(trainer, folder / f"{case['name']}.pt")
    rank = torch.distributed.get_rank()
    (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(result))


def result_of(trainer, parameters: Path) -> dict:
    """Return the logs and the world of a finished trainer, write its parameters, and let go of it."""
    result = {
        "logs": logs_without_timings(trainer),
        "processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
    }
    if trainer.accelerator.is_main_process:
        torch.save(trainer.model.state_dict(), parameters)
    release(trainer)
    return result


def broken_model(tokenizer):
    from hf_gradkit.data.tiny import tiny_llama

    model = tiny_llama(tokenizer, hidden_size=32)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("zzz")["input_ids"][0]] = float("nan")
    return model


if __name__ == "__main__":
    main()
