"""Pairs with images: TRL's with ours off, refused clearly with it on. A real, tiny vision-language model."""

import pytest
import torch
import transformers
import trl
from datasets import Dataset

import hf_gradkit
from helpers import DEFAULTS, logs_without_timings, make_rows, parameter_gap
from hf_gradkit.data.tiny import train_tokenizer

Image = pytest.importorskip("PIL.Image", reason="images need Pillow")

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a Llava of one layer each, and its processor."""
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **SMALL,
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, **SMALL),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make(trainer_class, config_class, policy, folder, **options):
    rows = [
        {
            "prompt": [{"role": "user", "content": "what is it"}],
            "chosen": [{"role": "assistant", "content": "a cat sat on the mat"}],
            "rejected": [{"role": "assistant", "content": "the dog"}],
            "image": Image.new("RGB", (16, 16), (i * 9 % 255, 40, 200)),
        }
        for i in range(8)
    ]
    args = config_class(**{"output_dir": str(folder), **DEFAULTS, "max_length": None, **options})
    return trainer_class(model=policy, args=args, train_dataset=Dataset.from_list(rows))


def test_images_pass_through_to_trl(policy, tmp_path):
    theirs = make(trl.DPOTrainer, trl.DPOConfig, policy, tmp_path / "trl")
    ours = make(hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig, policy, tmp_path / "ours")
    for trainer in (theirs, ours):
        trainer.train()
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0


@pytest.mark.parametrize("options", [{"loss_type": ["rpo"]}, {"example_log": True}], ids=str)
def test_images_are_refused_with_ours_on(options, policy, tmp_path):
    with pytest.raises(ValueError, match="The training data has images, which weights and objectives of pairs"):
        make(hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig, policy, tmp_path, **options)
