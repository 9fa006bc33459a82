"""Step time and peak memory of our trainers against TRL's own, in one run.

    python benchmarks/step_time.py                     # SFT; a few minutes on two CPU cores
    python benchmarks/step_time.py --trainer dpo
    python benchmarks/step_time.py --hidden 2048 --layers 16 --length 1024 --device cuda --bf16

Step times are paired: all trainers are alive at once and take turns, one optimizer step each. A second TRL trainer
shows the noise. Printed are ratios to TRL's step of the same round: the median, its 95 % bootstrap interval, and the
quartiles of single rounds.
"""

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from paired import measure, profile, quiet
from transformers import LlamaConfig, LlamaForCausalLM

import hf_gradkit
from hf_gradkit.data.tiny import train_tokenizer

WORDS = "the a cat dog mat sat ran saw one big red house on and to under old".split()  # noqa: SIM905
SFT_ARMS = {
    "trl": None,
    "trl again": None,
    "off": {},
    "columns": {"group_column": "source"},
    "micro_batch": {"weighting": "linupper", "weighting_kwargs": {"scope": "micro_batch", "warmup_ratio": 0.0}},
    "running": {"weighting": "linupper", "weighting_kwargs": {"scope": "running", "warmup_ratio": 0.0}},
    "step": {"weighting": "linupper", "weighting_kwargs": {"scope": "step", "warmup_ratio": 0.0}},
}
DPO_ARMS = {
    "trl": None,
    "trl again": None,
    "off": {},
    "madpo": {"weighting": "madpo"},
    "rpo": {"loss_type": ["rpo"]},
    "beta_dpo": {"loss_type": ["beta_dpo"]},
    "linupper": {"weighting": "linupper", "weighting_kwargs": {"warmup_ratio": 0.0}},
}
ARMS = {"sft": SFT_ARMS, "dpo": DPO_ARMS}
CLASSES = {
    "sft": ((trl.SFTTrainer, trl.SFTConfig), (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)),
    "dpo": ((trl.DPOTrainer, trl.DPOConfig), (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig)),
}


def make_data(options: argparse.Namespace) -> tuple[Dataset, Any]:
    """Return rows of a quarter of `length` to `length` words, prompt included, and a tokenizer."""
    rng = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(longest // 4, longest - 1)))

    rows: list[dict[str, Any]] = []
    for i in range(64):
        if options.trainer == "sft":
            rows.append({"text": text(options.length), "source": "ab"[i % 2]})
        else:
            prompt, chosen, rejected = (text(options.length // 2) for _ in range(3))
            rows.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected})
            rows[-1]["reward_margin"] = rng.gauss(1, 2)
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    return Dataset.from_list(rows), train_tokenizer(texts, 400)


def make_trainer(arm: str, options: argparse.Namespace, folder: str, callbacks: list) -> Any:
    """Return the trainer of an arm; all have the same model, data and order."""
    dataset, tokenizer = make_data(options)
    ours = ARMS[options.trainer][arm]
    trainer_class, config_class = CLASSES[options.trainer][ours is not None]
    args = config_class(
        output_dir=f"{folder}/{arm}",
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        logging_steps=1,
        optim="sgd",
        max_length=options.length,
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        activation_checkpointing=options.checkpointing,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **(ours or {}),
    )
    model = make_model(options, tokenizer)
    if options.trainer == "dpo":  # TRL loads the reference from where the policy was loaded
        path = f"{folder}/policy"
        if not Path(path).exists():
            model.save_pretrained(path)
        model = path
    return trainer_class(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks
    )


def make_model(options: argparse.Namespace, tokenizer: Any) -> LlamaForCausalLM:
    """Return a Llama of the size asked for, the same for every arm."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=list(ARMS), default="sft")
    parser.add_argument("--arms", nargs="+", help=f"sft: {', '.join(SFT_ARMS)}; dpo: {', '.join(DPO_ARMS)}; all")
    parser.add_argument("--steps", type=int, default=30, help="rounds that are timed")
    parser.add_argument("--memory_rounds", type=int, default=3, help="processes an arm for peak memory; 0 for none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--profile", metavar="ARM", help="only profile this arm, on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    known = ARMS[options.trainer]
    for arm in [*(options.arms or []), *filter(None, [options.profile])]:
        if arm not in known:
            parser.error(f"{arm!r} is not an arm of --trainer {options.trainer}; they are {', '.join(known)}")
    torch.set_num_threads(options.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            profile(make_trainer, options.profile, options, folder)
        else:
            measure(make_trainer, ["trl", *(arm for arm in options.arms or known if arm != "trl")], options, folder)


if __name__ == "__main__":
    main()
