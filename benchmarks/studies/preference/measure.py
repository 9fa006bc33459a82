"""What is measured of a policy: rewards of what it writes, its distance from the reference, log-probs of the pairs."""

import statistics

import torch
from transformers import LlamaForSequenceClassification
from world import LONGEST, World, load_policy, load_tokenizer, rewards

from hf_gradkit.data.synthetic_pairs import prompts, true_reward

NEW_TOKENS = 32


class Measure:
    """Measures policies of one world, always with the same prompts and the same random numbers.

    Args:
        world: the world whose reference, reward model and pairs are used.
        split: whose prompts are answered; tuning answers those of "train", the comparison those of "test".
    """

    def __init__(self, world: World, split: str):
        self.tokenizer = load_tokenizer(world.policy)
        self.reference = load_policy(world.policy).eval()
        self.reward_model = LlamaForSequenceClassification.from_pretrained(world.reward).eval()
        self.prompts = prompts(split)[:: 4 if split == "train" else 1]  # 24 of either
        self.pairs = {"train": world.pairs[:128], "held_out": world.held_out}
        self.reference_log_probs = {name: self._pair_log_probs(self.reference, name) for name in self.pairs}

    @torch.no_grad()
    def __call__(self, model, samples: int) -> dict[str, float]:
        """Measure a policy with that many completions of each prompt.

        Returns:
            `true`, `true_error` (of the mean, over completions), `proxy`, `kl` (nats a completion, the sum over its
            positions of the exact divergence from the reference), `words` (without "very" and "not"), `repeated`
            (share of these that repeat an earlier one), and for `train` and `held_out` pairs the mean log-prob of the
            chosen and rejected completions minus the reference's, and the share of pairs that the implicit reward
            orders as the truth.
        """
        training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            ids, mask, answers = self._sample(model, self.prompts * samples)
        asked = self.prompts * samples
        true = [true_reward(p, a) for p, a in zip(asked, answers, strict=True)]
        words = [[word for word in answer.split() if word not in ("very", "not")] for answer in answers]
        figures = {
            "true": statistics.fmean(true),
            "true_error": statistics.stdev(true) / len(true) ** 0.5,
            "proxy": rewards(self.reward_model, self.tokenizer, asked, answers).mean().item(),
            "kl": self._divergence(model, ids, mask),
            "words": statistics.fmean(map(len, words)),
            "repeated": 1 - sum(len(set(w)) for w in words) / max(1, sum(map(len, words))),
        }
        for name in self.pairs:
            figures |= self._pair_figures(model, name)
        model.train(training)
        return figures

    def _sample(self, model, asked: list[str]):
        """Return (rows, tokens) ids and a mask of the completions in them, end token included, and their texts."""
        batch = self.tokenizer(asked, return_tensors="pt", padding=True, padding_side="left")
        start = batch["input_ids"].shape[1]
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
        )
        ended = (ids[:, start:] == self.tokenizer.eos_token_id).cumsum(1)
        # everything up to and including the first end token
        written = (ended == 0) | ((ended == 1) & (ids[:, start:] == self.tokenizer.eos_token_id))
        mask = torch.cat([torch.zeros_like(batch["input_ids"], dtype=torch.bool), written], 1)
        answers = [self.tokenizer.decode(row[m], skip_special_tokens=True) for row, m in zip(ids, mask, strict=True)]
        attention = torch.cat([batch["attention_mask"].bool(), written], 1)
        return (ids, attention), mask, answers

    def _divergence(self, model, ids, mask: torch.Tensor) -> float:
        ids, attention = ids
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        total = 0.0
        for begin in range(0, len(ids), 128):
            part = slice(begin, begin + 128)
            inputs = {"input_ids": ids[part], "attention_mask": attention[part], "position_ids": positions[part]}
            ours = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
            theirs = self.reference(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
            divergence = (ours.exp() * (ours - theirs)).sum(-1)
            total += (divergence * mask[part, 1:]).sum().item()
        return total / len(ids)

    def _pair_log_probs(self, model, name: str) -> dict[str, torch.Tensor]:
        """Return the summed log-prob of each chosen and rejected completion, end token included. (pairs,) each"""
        return {side: self._log_probs(model, self.pairs[name], side) for side in ("chosen", "rejected")}

    @torch.no_grad()
    def _log_probs(self, model, pairs: list[dict], side: str) -> torch.Tensor:
        asked = [self.tokenizer(pair["prompt"])["input_ids"] for pair in pairs]
        texts = [self.tokenizer(pair["prompt"] + pair[side])["input_ids"] for pair in pairs]
        rows = [[*text, self.tokenizer.eos_token_id] for text in texts]
        width = min(LONGEST, max(map(len, rows)))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([[len(p), len(row)] for p, row in zip(asked, rows, strict=True)])
        place = torch.arange(width)[None]
        attention = place < lengths[:, 1:]
        completion = attention & (place >= lengths[:, :1])
        logits = model(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits[:, :-1]
        taken = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return (taken * completion[:, 1:]).sum(-1)

    def _pair_figures(self, model, name: str) -> dict[str, float]:
        log_probs = self._pair_log_probs(model, name)
        drift = {side: log_probs[side] - self.reference_log_probs[name][side] for side in log_probs}
        truth = torch.tensor([pair["true_margin"] for pair in self.pairs[name]])
        right = ((drift["chosen"] - drift["rejected"]) * truth.sign() > 0) | (truth == 0)
        return {
            f"{name}_chosen": drift["chosen"].mean().item(),
            f"{name}_rejected": drift["rejected"].mean().item(),
            f"{name}_accuracy": right.float().mean().item(),
        }
