"""A vision-language model of a few thousand random weights, as files: what SmolVLA is built on, where no hub is."""

from pathlib import Path

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "pick",
    "up",
    "the",
    "cube",
]


def tokenizer():
    """Of a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named, extra_special_tokens=special)


def write(folder: Path, side: int = 32) -> Path:
    """The folder, with a configuration, a processor and a tokenizer, and no weights. `side` pixels a picture."""
    import transformers as hf

    text = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "head_dim": 8,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": side, "patch_size": 8}  # fmt: skip
    config = hf.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=4, pad_token_id=0)
    config.save_pretrained(folder)
    parts = [hf.SmolVLMImageProcessor(), tokenizer(), hf.SmolVLMVideoProcessor()]
    hf.SmolVLMProcessor(*parts, image_seq_len=4, chat_template="").save_pretrained(folder)
    return folder
